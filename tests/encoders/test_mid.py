"""The second token level of the packaged backbones, against the layers' own outputs; the hub's are tested there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from modalloy.data import Item, Manifest
from modalloy.encoders import load_encoder
from modalloy.encoders.check import check_encoder
from modalloy.encoders.mid import MidLevel
from modalloy.encoders.registry import absolute_spec, relative_spec
from modalloy.encoders.vit import ViT
from modalloy.errors import ConfigError
from modalloy.features import FeatureStore, extract

Draw = Callable[..., Image.Image]
TEXTS = ["A red telephone", "two dogs run over the green grass"]


def seen(module: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    """What a module gives while something runs."""
    given: list[Tensor] = []
    handle = module.register_forward_hook(lambda *call: given.append(call[2]))
    run()
    handle.remove()
    return given


@pytest.mark.parametrize(
    ("spec", "side", "width"), [("efficientnet-lite0@64", 4, 112), ("efficientnet-lite2@64", 4, 120)]
)
def test_a_net_s_is_its_last_map_of_twice_the_resolution(picture: Draw, spec: str, side: int, width: int) -> None:
    model: Any = load_encoder(spec)
    images = [picture(0), picture(1)]
    last_block = max(
        (block for block in model._model.network._blocks if block._block_args.output_filters == width),
        key=list(model._model.network._blocks).index,
    )
    (maps,) = seen(last_block, lambda: model.encode_images(images))
    assert maps.shape == (2, width, side, side)
    encoded = MidLevel(model).encode_images(images)
    for tokens, embedding, cells in zip(encoded.tokens_of_each(), encoded.embedding, maps.flatten(2).mT, strict=True):
        torch.testing.assert_close(tokens, torch.cat([cells.mean(0, keepdim=True), cells]))
        torch.testing.assert_close(embedding, F.normalize(cells.mean(0), dim=0))


def test_a_vit_s_is_an_earlier_block_pooled_like_the_last(picture: Draw) -> None:
    model = ViT(56)
    (hidden,) = seen(model._model.blocks[7], lambda: model.encode_images([picture(0)]))
    patches = model._model.norm(hidden)[0, 1:].view(4, 4, -1)
    tokens = MidLevel(model).encode_images([picture(0)]).tokens
    assert tokens.shape == (5, 384)
    torch.testing.assert_close(tokens[0], model._model.norm(hidden)[0, 0])
    torch.testing.assert_close(tokens[2], patches[:2, 2:].mean((0, 1)), atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="no second token level"):
        MidLevel(ViT(56, block=-5))


def test_minilm_s_is_an_earlier_layer_behind_its_mean() -> None:
    model: Any = load_encoder("minilm")
    tokens = MidLevel(model).encode_texts(TEXTS).tokens_of_each()
    for text, found in zip(TEXTS, tokens, strict=True):
        (hidden,) = seen(model._model.encoder.layer[4], lambda text=text: model.encode_texts([text]))
        torch.testing.assert_close(found[1:], hidden[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[0], hidden[0].mean(0), atol=1e-5, rtol=1e-5)
    assert MidLevel(model).token_texts("A dog") == ["[summary]", "[CLS]", "a", "dog", "[SEP]"]


@pytest.mark.parametrize("spec", ["mid:efficientnet-lite0@64", "mid:vit-s14-focus@56", "mid:minilm@16"])
def test_it_is_an_encoder_like_any_other(spec: str) -> None:
    encoder = load_encoder(spec)
    assert encoder.spec == spec
    check_encoder(encoder)


def test_its_fingerprint_is_its_own_and_the_model_s_stays(tmp_path: Path) -> None:
    model = load_encoder("minilm")
    known = model.fingerprint("text")
    mid = MidLevel(model).fingerprint("text")
    assert mid.digest != known.digest == load_encoder("minilm").fingerprint("text").digest
    assert mid.weights_sha256 == known.weights_sha256
    assert MidLevel(load_encoder("minilm@16")).fingerprint("text") != mid


def test_its_features_have_the_rows_of_the_model_s(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"no picture")
    for name in ("a", "c"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
    items = tuple(Item(name, f"{name}.png", "0" * 64, "train", (f"picture {name}",)) for name in "abc")
    manifest, model = Manifest(tmp_path, items), load_encoder("efficientnet-lite0@64")
    stores: list[FeatureStore] = [
        extract(encoder, "image", manifest, tmp_path / encoder.spec.replace(":", "-"), workers=1, progress=False)
        for encoder in (model, MidLevel(model))
    ]
    assert stores[0].ids == stores[1].ids
    assert stores[0].valid.tolist() == stores[1].valid.tolist() == [True, False, True]
    assert (stores[0].width, stores[1].width) == (1280, 112)
    assert stores[1].tokens()[1].tolist() == [17, 0, 17]


def test_what_has_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="subwords has no second token level"):
        load_encoder("mid:subwords")
    with pytest.raises(ConfigError, match="subwords has no second token level of texts"):
        load_encoder("subwords").forward_mid("text", [])
    with pytest.raises(ConfigError, match="no second token level"):
        load_encoder("mid:mid:minilm")
    with pytest.raises(ConfigError, match="Unknown encoder 'mid:'"):
        load_encoder("mid:")
    with pytest.raises(ConfigError, match="encodes text, not image"):
        load_encoder("mid:minilm").width("image")


def test_a_spec_s_folder_moves_with_what_names_it(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    spec = f"mid:bert:{tmp_path / 'bert'}"
    assert relative_spec(spec, tmp_path) == "mid:bert:bert"
    assert absolute_spec("mid:bert:bert", tmp_path) == spec
