"""Training encoders further: one pass for both levels, gradients, and activations that are computed again."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders.hub.backbones import IMAGES, TEXT_CONFIGS, save_backbone
from PIL import Image
from torch import Tensor, nn

from modalloy.encoders import Encoded, Encoder, Level, Modality, load_encoder
from modalloy.encoders.base import require_network
from modalloy.encoders.recompute import recompute_blocks
from modalloy.errors import ConfigError

Draw = Callable[..., Image.Image]
PACKAGED = ["efficientnet-lite0@64", "vit-s14-focus@56", "minilm@16"]
TEXTS = ["A Red phone", "the old dog runs with a small blue telephone"]
LEVELS: tuple[Level, Level] = ("high", "mid")


@pytest.fixture(scope="module", params=[*PACKAGED, *IMAGES, *TEXT_CONFIGS])
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    name = request.param
    if name in PACKAGED:
        return name
    return f"{IMAGES[name][0] if name in IMAGES else 'bert'}:{save_backbone(tmp_path_factory.mktemp(name), name)}"


@pytest.fixture
def items(picture: Draw) -> Callable[[Encoder], tuple[Modality, list[Any]]]:
    def prepare(encoder: Encoder) -> tuple[Modality, list[Any]]:
        (modality,) = encoder.modalities
        each: Sequence[Image.Image | str] = TEXTS if modality == "text" else [picture(0), picture(1, 90, 40)]
        return modality, [encoder.preprocess(modality, item) for item in each]

    return prepare


def same(one: Encoded, other: Encoded) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("embedding", "tokens", "lengths"))


def loss_of(encoded: dict[Level, Encoded]) -> Tensor:
    """A sum with weights of its own for each number, so that each has its own gradient."""
    random = torch.Generator().manual_seed(0)
    parts = [each for level in sorted(encoded) for each in (encoded[level].embedding, encoded[level].tokens)]
    return torch.stack([(part * torch.randn(part.shape, generator=random)).sum() for part in parts]).sum()


def gradients(network: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def test_one_pass_gives_what_two_give(spec: str, items: Any) -> None:
    encoder = load_encoder(spec)
    modality, prepared = items(encoder)
    expected: dict[Level, Encoded] = {
        "high": encoder.forward(modality, prepared),
        "mid": encoder.forward_mid(modality, prepared),
    }
    for levels in (["high"], ["mid"], ["mid", "high"]):
        found = encoder.forward_levels(modality, prepared, levels)  # type: ignore[arg-type]
        assert set(found) == set(levels)
        assert all(same(found[level], expected[level]) for level in found)
        assert not any(each.tokens.requires_grad for each in found.values())


def test_all_that_makes_the_features_gets_a_gradient(spec: str, items: Any) -> None:
    encoder = load_encoder(spec)
    modality, prepared = items(encoder)
    network = require_network(encoder, modality).requires_grad_(True)
    assert not encoder.forward(modality, prepared).tokens.requires_grad
    assert not encoder.forward_mid(modality, prepared).tokens.requires_grad
    loss_of(encoder.forward_levels(modality, prepared, LEVELS)).backward()
    without = {name.split(".")[1] for name, gradient in gradients(network).items() if gradient is None}
    # The ViT's last block is left out of its features.
    assert without == ({"11"} if spec.startswith("vit-s14") else set())
    # Adding the same number to each affinity of a query changes no attention.
    zero = {name for name, gradient in gradients(network).items() if gradient is not None and not gradient.any()}
    assert all("key" in name or "k_proj" in name or ".k_lin" in name for name in zero)
    with torch.no_grad():
        assert not encoder.forward_levels(modality, prepared, LEVELS)["mid"].tokens.requires_grad


def test_a_gradient_is_a_finite_difference(tmp_path: Path, items: Any) -> None:
    encoder = load_encoder(f"bert:{save_backbone(tmp_path / 'bert', 'bert')}")
    modality, prepared = items(encoder)
    network: Any = require_network(encoder, modality).double().requires_grad_(True)

    def run() -> Tensor:
        return loss_of(encoder.forward_levels(modality, prepared, LEVELS))

    run().backward()
    for weight in (network.encoder.layer[0].attention.self.value.weight, network.embeddings.LayerNorm.bias):
        expected = weight.grad.flatten()[3].item()
        with torch.no_grad():
            number, losses = weight.flatten()[3].item(), []
            for step in (1e-5, -1e-5):
                weight.view(-1)[3] = number + step
                losses.append(run().item())
            weight.view(-1)[3] = number
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(expected, rel=1e-6)


def trained_step(encoder: Encoder, prepared: list[Any], mode: bool, kept: list[Tensor]) -> tuple[Tensor, Any]:
    """Loss and gradients, with all tensors that were kept for the backward pass."""
    (modality,) = encoder.modalities
    network = require_network(encoder, modality).requires_grad_(True).train(mode)
    torch.manual_seed(7)

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(encoder.forward_levels(modality, prepared, LEVELS))
    loss.backward()
    return loss.detach(), gradients(network)


def size(kept: list[Tensor], encoder: Encoder) -> int:
    """Bytes of them, but for the parameters."""
    own = {each.untyped_storage().data_ptr() for each in require_network(encoder, encoder.modalities[0]).parameters()}
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in kept}
    return sum(bytes for pointer, bytes in storages.items() if pointer not in own)


@pytest.mark.parametrize("mode", [True, False])
def test_activations_computed_again_give_the_same_gradients(spec: str, mode: bool, items: Any) -> None:
    plain, again = load_encoder(spec), load_encoder(spec)
    modality, prepared = items(plain)
    for _ in range(2):
        again.recompute_activations(modality)
    kept: tuple[list[Tensor], list[Tensor]] = ([], [])
    loss, expected = trained_step(plain, prepared, mode, kept[0])
    again_loss, found = trained_step(again, prepared, mode, kept[1])
    assert torch.equal(again_loss, loss)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None)
        assert gradient is None or torch.equal(found[name], gradient), name
    assert size(kept[1], again) < (0.6 if spec in PACKAGED else 0.8) * size(kept[0], plain)
    # What is dropped differs from draw to draw; only the packaged ViT drops nothing.
    with torch.no_grad():
        other_draw = loss_of(plain.forward_levels(modality, prepared, LEVELS))
    assert (other_draw == loss) == (not mode or spec.startswith("vit-s14"))
    for encoder in (plain, again):
        require_network(encoder, modality).eval()
    assert same(again.forward(modality, prepared), plain.forward(modality, prepared))


def test_half_precision_trains_too(spec: str, items: Any) -> None:
    encoder = load_encoder(spec)
    modality, prepared = items(encoder)
    network = require_network(encoder, modality).requires_grad_(True).train()
    encoder.recompute_activations(modality)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(encoder.forward_levels(modality, prepared, LEVELS))
    loss.backward()
    found = [gradient for gradient in gradients(network).values() if gradient is not None]
    assert found
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("spec", PACKAGED[:2])
def test_one_pass_is_one_and_the_mid_level_s_is_shorter(spec: str, items: Any) -> None:
    encoder: Any = load_encoder(spec)
    modality, prepared = items(encoder)
    network = encoder.network(modality)
    blocks = list(network.network._blocks if "efficientnet" in spec else network.blocks)
    runs: list[int] = []
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda *call, number=number: runs.append(number))
    encoder.forward_levels(modality, prepared, LEVELS)
    last = len(blocks) - 1 if "efficientnet" in spec else 10
    assert runs == list(range(last + 1))
    runs.clear()
    encoder.forward_mid(modality, prepared)
    assert runs == list(range(11 if "efficientnet" in spec else 8))


def test_dropped_blocks_leave_an_image_s_other_features(picture: Draw) -> None:
    """In EfficientNet-Lite's own training; the statistics of its batch norms, which are folded, stay."""
    encoder: Any = load_encoder("efficientnet-lite0@64")
    prepared = [encoder.preprocess("image", picture(0))] * 8
    network = encoder.network("image")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert network.state_dict().keys() == dict(network.named_parameters()).keys()
    network.train()
    torch.manual_seed(0)
    drawn = encoder.forward("image", prepared).embedding
    network.eval()
    whole = encoder.forward("image", prepared).embedding
    assert (drawn[0] - drawn[1]).norm() > 0.01
    torch.testing.assert_close(whole, whole[:1].expand(8, -1))
    # Kept blocks are scaled up for the dropped ones, so that the mean over draws is near the whole network's.
    assert (drawn.mean(0) - whole[0]).norm() < (drawn - whole[0]).norm(dim=1).mean()


def test_two_loads_share_nothing(spec: str, items: Any) -> None:
    one, other = load_encoder(spec), load_encoder(spec)
    modality, prepared = items(one)
    before = other.forward(modality, prepared)
    with torch.no_grad():
        for parameter in require_network(one, modality).parameters():
            parameter.mul_(1.5)
    assert not same(one.forward(modality, prepared), before)
    assert same(other.forward(modality, prepared), before)


def test_what_has_no_part_in_the_features_is_no_part_of_the_network(tmp_path: Path) -> None:
    (save_backbone(tmp_path / "bert", "bert") / "modules.json").write_text("[]")
    networks: list[Any] = [
        load_encoder(f"{kind}:{save_backbone(tmp_path / name, name)}").network("image")
        for kind, name in (("vit", "vit"), ("dinov2", "dinov2"))
    ]
    networks.append(load_encoder(f"bert:{tmp_path / 'bert'}").network("text"))
    names = [name for network in networks for name in network.state_dict()]
    assert not [name for name in names if "pooler" in name or "mask_token" in name]


@pytest.mark.parametrize("spec", ["subwords", "mid:minilm@16"])
def test_what_cannot_be_trained_further_says_so(spec: str) -> None:
    encoder = load_encoder(spec)
    assert encoder.network("text") is None
    with pytest.raises(ConfigError, match=f"{spec} can't be trained further"):
        encoder.forward_levels("text", [encoder.preprocess("text", "a dog")], ["high"])
    with pytest.raises(ConfigError, match=f"{spec} can't be trained further"):
        encoder.recompute_activations("text")


def test_wrong_modalities_levels_and_networks() -> None:
    encoder = load_encoder("minilm@16")
    with pytest.raises(ConfigError, match="encodes text, not image"):
        encoder.network("image")
    with pytest.raises(ConfigError, match="encodes text, not image"):
        encoder.forward_levels("image", [], ["high"])
    with pytest.raises(ConfigError, match="Linear has no blocks"):
        recompute_blocks(nn.Linear(1, 1))
