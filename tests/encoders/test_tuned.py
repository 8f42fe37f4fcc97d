"""Backbones that were trained further, saved and loaded as encoders of their own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damaged_files import damaged_copies
from encoders.hub.backbones import IMAGES, save_backbone
from encoders.hub.models import save_clip
from PIL import Image
from safetensors.torch import load, load_file, save_file
from torch import nn

from modalloy.encoders import Encoded, Encoder, load_encoder
from modalloy.encoders.base import require_network
from modalloy.encoders.check import check_encoder
from modalloy.encoders.checkpoint import packed_weights
from modalloy.encoders.registry import absolute_spec, relative_spec
from modalloy.encoders.tuned import TunedEncoder
from modalloy.errors import CheckpointError, ConfigError, ModalloyError

Draw = Callable[..., Image.Image]
TEXTS = ["A Red phone", "the old dog runs with a small blue telephone", "cat"]
_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("vit-s14-focus@56", "minilm@16")]
NAMES = ["efficientnet-lite0@64", *_SLOW, "convnext", "registers", "bert", "albert"]


def spec_of(name: str, folder: Path) -> str:
    if "@" in name:
        return name
    return f"{IMAGES[name][0] if name in IMAGES else 'bert'}:{save_backbone(folder, name)}"


def train(encoder: Encoder, seed: int = 0) -> Encoder:
    """Moves all weights a little."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in require_network(encoder, encoder.modalities[0]).parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return encoder


@pytest.fixture
def bert(tmp_path: Path) -> str:
    return spec_of("bert", tmp_path / "bert")


@pytest.fixture
def tuned(bert: str, tmp_path: Path) -> Path:
    TunedEncoder.save(train(load_encoder(bert)), tmp_path / "tuned")
    return tmp_path / "tuned"


def same(one: Encoded, other: Encoded) -> bool:
    return torch.equal(one.embedding, other.embedding) and torch.equal(one.tokens, other.tokens)


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_what_the_trained_network_gives(name: str, tmp_path: Path, picture: Draw) -> None:
    spec = spec_of(name, tmp_path / name)
    trained = train(load_encoder(spec))
    TunedEncoder.save(trained, tmp_path / "tuned")
    encoder = load_encoder(f"tuned:{tmp_path / 'tuned'}")
    mid = load_encoder(f"mid:{encoder.spec}")
    (modality,) = encoder.modalities
    items: list[Any] = TEXTS if modality == "text" else [picture(0), picture(1, 90, 40)]
    prepared = [encoder.preprocess(modality, item) for item in items]
    found = encoder.forward_levels(modality, prepared, ["high", "mid"])
    assert same(found["high"], encoder.forward(modality, prepared))
    assert same(found["mid"], encoder.forward_mid(modality, prepared))
    assert same(found["high"], trained.forward(modality, prepared))
    assert same(found["mid"], trained.forward_mid(modality, prepared))
    assert same(found["mid"], mid.forward(modality, prepared))
    base = load_encoder(spec)
    assert not same(found["high"], base.forward(modality, prepared))
    assert encoder.spec == f"tuned:{tmp_path / 'tuned'}"
    assert (encoder.modalities, encoder.name) == (base.modalities, f"{base.name}, tuned")
    assert (encoder.dim(modality), encoder.width(modality)) == (base.dim(modality), base.width(modality))
    assert encoder.mid_layer(modality) == base.mid_layer(modality)
    assert encoder.token_grid() == base.token_grid()
    if modality == "text":
        assert encoder.token_texts(TEXTS[1]) == mid.token_texts(TEXTS[1]) == base.token_texts(TEXTS[1])
    check_encoder(encoder)
    check_encoder(mid)


def test_it_can_be_trained_again_and_saved_as_its_base_with_newer_weights(bert: str, tuned: Path) -> None:
    encoder = train(load_encoder(f"tuned:{tuned}"), seed=1)
    encoder.recompute_activations("text")
    TunedEncoder.save(encoder, tuned.parent / "again")
    recorded = json.loads((tuned.parent / "again" / "config.json").read_text())
    assert recorded["base"]["spec"] == "bert:../bert"
    assert recorded["modality"] == "text"
    shutil.rmtree(tuned)
    again = load_encoder(f"tuned:{tuned.parent / 'again'}")
    assert same(again.encode_texts(TEXTS), encoder.encode_texts(TEXTS))


def test_two_loads_share_nothing(tuned: Path) -> None:
    one, other, mid = (load_encoder(f"{kind}tuned:{tuned}") for kind in ("", "", "mid:"))
    before = other.encode_texts(TEXTS), mid.encode_texts(TEXTS)
    train(one)
    assert not same(one.encode_texts(TEXTS), before[0])
    assert same(other.encode_texts(TEXTS), before[0])
    assert same(mid.encode_texts(TEXTS), before[1])


def test_the_fingerprint_is_of_the_weights_wherever_they_lie(bert: str, tuned: Path, tmp_path: Path) -> None:
    known = load_encoder(f"tuned:{tuned}").fingerprint("text")
    TunedEncoder.save(train(load_encoder(bert)), tmp_path / "far" / "away")
    TunedEncoder.save(train(load_encoder(bert), seed=1), tmp_path / "other")
    TunedEncoder.save(load_encoder(bert), tmp_path / "untrained")
    assert load_encoder(f"tuned:{tmp_path / 'far' / 'away'}").fingerprint("text") == known
    others = [f"tuned:{tmp_path / 'other'}", f"tuned:{tmp_path / 'untrained'}", f"mid:tuned:{tuned}", bert]
    assert len({known.digest, *(load_encoder(spec).fingerprint("text").digest for spec in others)}) == 5
    base = load_encoder(bert).fingerprint("text")
    assert (known.revision, known.preprocessing_sha256) == (base.revision, base.preprocessing_sha256)
    assert known.name == "tuned:bert:bert text"
    with pytest.raises(ConfigError, match="encodes text, not image"):
        load_encoder(f"tuned:{tuned}").fingerprint("image")


def test_the_preprocessing_counts(tmp_path: Path) -> None:
    for size in (64, 96):
        TunedEncoder.save(load_encoder(f"efficientnet-lite0@{size}"), tmp_path / str(size))
    small, large = (load_encoder(f"tuned:{tmp_path / str(size)}").fingerprint("image") for size in (64, 96))
    assert small.weights_sha256 == large.weights_sha256
    assert small.preprocessing_sha256 != large.preprocessing_sha256


def test_its_network_goes_where_it_goes(tuned: Path) -> None:
    encoder = load_encoder(f"tuned:{tuned}").to("meta")
    assert {parameter.device.type for parameter in require_network(encoder, "text").parameters()} == {"meta"}
    assert isinstance(encoder, TunedEncoder)
    assert encoder.base.device == encoder.device == torch.device("meta")


def test_it_moves_with_its_base(tuned: Path, tmp_path: Path) -> None:
    known = load_encoder(f"tuned:{tuned}")
    moved = tmp_path / "elsewhere" / "deep"
    moved.mkdir(parents=True)
    for name in ("bert", "tuned"):
        shutil.move(tmp_path / name, moved / name)
    encoder = load_encoder(f"tuned:{moved / 'tuned'}")
    assert encoder.fingerprint("text") == known.fingerprint("text")
    assert same(encoder.encode_texts(TEXTS), known.encode_texts(TEXTS))
    shutil.rmtree(moved / "bert")
    with pytest.raises(ConfigError, match=r"bert"):
        load_encoder(f"tuned:{moved / 'tuned'}")


@pytest.mark.parametrize("kind", ["tuned:", "mid:tuned:"])
def test_its_spec_s_folder_moves_with_what_names_it(kind: str, tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = f"{kind}{tuned}"
    assert relative_spec(spec, tuned.parent / "runs") == f"{kind}../tuned"
    assert absolute_spec(f"{kind}../tuned", tuned) == spec
    monkeypatch.chdir(tuned.parent)
    encoder = load_encoder(f"{kind}tuned")
    assert encoder.spec == spec
    monkeypatch.chdir("/")
    assert same(load_encoder(encoder.spec).encode_texts(TEXTS), encoder.encode_texts(TEXTS))


def test_a_changed_base_is_refused(tuned: Path) -> None:
    weights = tuned.parent / "bert" / "model.safetensors"
    changed = {name: tensor + 1 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"was made with bert:bert text .* but 'bert:.*' now is bert:bert text"):
        load_encoder(f"tuned:{tuned}")


def test_damaged_weights_are_refused(tuned: Path) -> None:
    path = tuned / "model.safetensors"
    whole = path.read_bytes()
    for damaged in damaged_copies(whole, 5):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged, or isn't the file"):
            load_encoder(f"tuned:{tuned}")
    path.unlink()
    with pytest.raises(CheckpointError, match="can't be read"):
        load_encoder(f"tuned:{tuned}")


def test_a_damaged_configuration_is_refused(tuned: Path) -> None:
    path = tuned / "config.json"
    whole = path.read_bytes()
    for damaged in damaged_copies(whole, 40):
        path.write_bytes(damaged)
        with pytest.raises(ModalloyError):
            load_encoder(f"tuned:{tuned}")
    recorded = json.loads(whole)
    for changes in ({"base": None}, {"base": {}}):
        path.write_text(json.dumps({**recorded, **changes}))
        with pytest.raises(CheckpointError, match=r"(?s)config\.json isn't whole .*copy the whole folder"):
            load_encoder(f"tuned:{tuned}")
    with pytest.raises(CheckpointError, match="Name a folder written by `modalloy align`"):
        load_encoder(f"tuned:{tuned / 'nowhere'}")
    with pytest.raises(ConfigError, match="tuned:<folder>"):
        load_encoder("tuned:")


@pytest.mark.parametrize("spec", ["tuned:.", "mid:tuned:."])
def test_a_base_that_is_tuned_is_refused(tuned: Path, spec: str) -> None:
    path = tuned / "config.json"
    recorded = json.loads(path.read_text())
    path.write_text(json.dumps({**recorded, "base": {**recorded["base"], "spec": spec}}))
    with pytest.raises(CheckpointError, match=rf"names (mid:)?tuned:{tuned} as the base, which can't be one"):
        load_encoder(f"tuned:{tuned}")


def test_activations_are_computed_again_in_the_base_s_way(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, asked = load_encoder(f"tuned:{tuned}"), []
    assert isinstance(encoder, TunedEncoder)
    monkeypatch.setattr(encoder.base, "recompute_activations", asked.append)
    encoder.recompute_activations("text")
    assert asked == ["text"]


def test_weights_of_another_network_are_refused(tuned: Path) -> None:
    TunedEncoder.save(load_encoder(spec_of("vit", tuned.parent / "vit")), tuned.parent / "other")
    recorded = {name: json.loads((tuned.parent / name / "config.json").read_text()) for name in ("tuned", "other")}
    mixed = {**recorded["tuned"], "weights_sha256": recorded["other"]["weights_sha256"]}
    (tuned / "config.json").write_text(json.dumps(mixed))
    shutil.copy(tuned.parent / "other" / "model.safetensors", tuned)
    with pytest.raises(CheckpointError, match=r"doesn't hold the weights of bert:.*Missing key"):
        load_encoder(f"tuned:{tuned}")


def test_only_what_was_trained_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="subwords can't be trained further"):
        TunedEncoder.save(load_encoder("subwords"), tmp_path / "x")
    with pytest.raises(ConfigError, match=r"of one modality .* clip:.* has two"):
        TunedEncoder.save(load_encoder(f"clip:{save_clip(tmp_path / 'clip')}"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_tied_and_strided_weights_are_packed_whole() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last))
    network[1].weight = network[0].weight
    network[1].bias = nn.Parameter(network[0].bias.detach())
    assert not network[2].weight.is_contiguous()
    weights = load(packed_weights(network))
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
