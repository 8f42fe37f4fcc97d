import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from modalloy.align import AlignedEncoder, Backbone, GlobalHead, HeadConfig
from modalloy.encoders import Encoded, Encoder, Fingerprint
from modalloy.errors import CheckpointError, ConfigError

WIDTH = {"image": 6, "text": 5}


class FakeBackbone(Encoder):
    """Two tokens an item, the summary token and one more; the number of times it was built is kept."""

    built = 0

    def __init__(self, modality: str, weights: str = "a") -> None:
        self.modalities = (modality,)
        self.spec = self.name = f"fake-{modality}"
        self.weights = weights
        FakeBackbone.built += 1

    def fingerprint(self, modality):
        return Fingerprint(self.spec, "1", self.weights * 64, "b" * 64)

    def dim(self, modality):
        return WIDTH[modality]

    def width(self, modality):
        return WIDTH[modality]

    def preprocess(self, modality, item):
        seed = len(item) if isinstance(item, str) else item.width
        return torch.randn(WIDTH[modality], generator=torch.Generator().manual_seed(seed))

    def forward(self, modality, prepared: Sequence[torch.Tensor]) -> Encoded:
        summary = torch.stack(list(prepared))
        tokens = torch.stack([summary, -summary], dim=1).flatten(0, 1)
        return Encoded(nn.functional.normalize(summary, dim=-1), tokens, torch.full((len(prepared),), 2))

    def token_grid(self):
        return (1, 1)

    def token_texts(self, text):
        return ["[summary]", text]


@pytest.fixture
def weights(monkeypatch) -> dict[str, str]:
    """Fake backbones behind `load_encoder`; the values are the weights they have now."""
    weights = {"image": "a", "text": "a"}

    def load(spec: str) -> FakeBackbone:
        modality = spec.removeprefix("fake-")
        return FakeBackbone(modality, weights[modality])

    monkeypatch.setattr("modalloy.align.encoder.load_encoder", load)
    FakeBackbone.built = 0
    return weights


def aligned(seed: int = 0, dim: int = 4) -> AlignedEncoder:
    torch.manual_seed(seed)
    backbones = {m: Backbone(f"fake-{m}", FakeBackbone(m).fingerprint(m), WIDTH[m]) for m in WIDTH}
    FakeBackbone.built = 0
    heads = {m: GlobalHead(HeadConfig(WIDTH[m], (7, dim))) for m in WIDTH}
    return AlignedEncoder(backbones, heads, name="Fake + Fake", training={"fingerprint": "f"})


def test_embeddings_are_the_heads_and_tokens_the_backbones(weights):
    encoder = aligned()
    encoded = encoder.encode_texts(["cat", "a dog"])
    backbone = FakeBackbone("text").encode_texts(["cat", "a dog"])
    assert torch.equal(encoded.embedding, encoder.heads["text"](backbone.embedding))
    assert torch.equal(encoded.tokens, backbone.tokens)
    assert torch.equal(encoded.lengths, backbone.lengths)
    assert encoder.dim("text") == encoder.dim("image") == 4
    assert (encoder.width("image"), encoder.width("text")) == (6, 5)
    assert encoder.token_grid() == (1, 1)
    assert encoder.token_texts("cat") == ["[summary]", "cat"]
    pictures = [Image.new("RGB", (3, 3)), Image.new("RGB", (4, 4))]
    assert encoder.encode_images(pictures).embedding.norm(dim=-1).allclose(torch.ones(2))


def test_a_saved_encoder_is_loaded_whole(weights, tmp_path):
    encoder = aligned()
    unsaved = encoder.fingerprint("image")
    encoder.save(tmp_path / "run")
    loaded = AlignedEncoder.from_pretrained(tmp_path / "run")
    assert loaded.name == "Fake + Fake"
    assert loaded.spec == encoder.spec == f"hacan:{tmp_path / 'run'}"
    assert loaded.training == {"fingerprint": "f"}
    assert loaded.backbones == encoder.backbones
    for modality in WIDTH:
        assert loaded.fingerprint(modality) == encoder.fingerprint(modality)
    assert encoder.fingerprint("image") == unsaved
    assert torch.equal(loaded.encode_texts(["cat"]).embedding, encoder.encode_texts(["cat"]).embedding)


def test_projecting_stored_features_loads_no_backbone(weights, tmp_path):
    backbone = FakeBackbone("text").encode_texts(["cat", "a dog"])
    aligned().save(tmp_path)
    FakeBackbone.built = 0
    encoder = AlignedEncoder.from_pretrained(tmp_path)
    projected = encoder.project("text", backbone)
    encoder.fingerprint("text")
    assert FakeBackbone.built == 0
    assert torch.equal(projected.embedding, encoder.encode_texts(["cat", "a dog"]).embedding)
    assert projected.tokens is backbone.tokens
    assert not projected.embedding.requires_grad


def test_threads_share_one_backbone(weights):
    encoder = aligned()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda text: encoder.preprocess("text", text), ["cat"] * 16))
    assert FakeBackbone.built == 1


def test_the_fingerprint_changes_with_the_heads_and_with_the_backbone(weights):
    encoder, other_heads = aligned(0), aligned(1)
    assert encoder.fingerprint("image").digest != other_heads.fingerprint("image").digest
    changed = aligned(0)
    changed.backbones["image"] = Backbone("fake-image", FakeBackbone("image", "c").fingerprint("image"), 6)
    assert changed.fingerprint("image").digest != encoder.fingerprint("image").digest
    assert changed.fingerprint("text") == encoder.fingerprint("text")


@pytest.mark.parametrize("change", [{"negative_slope": 0.5}, {"last_activation": False}, {"input": "summary"}])
def test_what_the_weights_do_not_tell_of_a_head_is_in_the_fingerprint(weights, change):
    encoder, other = aligned(), aligned()
    heads = dict(other.heads)
    heads["text"] = GlobalHead(HeadConfig(WIDTH["text"], (7, 4), **change))
    heads["text"].load_state_dict(encoder.heads["text"].state_dict())
    other = AlignedEncoder(other.backbones, heads, name=other.name)
    text, mine = other.fingerprint("text"), encoder.fingerprint("text")
    assert not torch.equal(other.encode_texts(["cat"]).embedding, encoder.encode_texts(["cat"]).embedding)
    assert text.weights_sha256 == mine.weights_sha256
    assert text.preprocessing_sha256 != mine.preprocessing_sha256
    assert other.fingerprint("image") == encoder.fingerprint("image")


def test_another_backbone_than_the_recorded_one_is_refused(weights, tmp_path):
    aligned().save(tmp_path)
    weights["text"] = "c"
    encoder = AlignedEncoder.from_pretrained(tmp_path)
    encoder.encode_images([Image.new("RGB", (3, 3))])
    with pytest.raises(CheckpointError, match=r"fake-text .*aaaaaaaaaaaa.*now is fake-text .*cccccccccccc"):
        encoder.encode_texts(["cat"])


def damage_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def swap_weights(folder: Path, other: AlignedEncoder) -> None:
    other.save(folder / "other")
    (folder / "other/model.safetensors").rename(folder / "model.safetensors")


def swap_weights_and_checksum(folder: Path, other: AlignedEncoder) -> None:
    swap_weights(folder, other)
    damage_config(folder, weights_sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "doesn't exist.*modalloy align"),
        (lambda folder: (folder / "config.json").write_text("{"), "isn't JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "should have the format .*got None"),
        (lambda folder: damage_config(folder, format="bert"), "should have the format .*got 'bert'"),
        (lambda folder: damage_config(folder, backbones={}), "isn't whole .*image"),
        (lambda folder: damage_config(folder, heads={"image": None, "text": None}), "isn't whole"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors can't be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"pickle"), "is damaged"),
        (lambda folder: swap_weights(folder, aligned(1)), "isn't the file that config.json"),
        (lambda folder: swap_weights_and_checksum(folder, aligned(0, dim=3)), "doesn't hold .*size mismatch"),
    ],
)
def test_a_folder_that_is_not_ours_is_refused(weights, tmp_path, damage, message):
    aligned().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        AlignedEncoder.from_pretrained(tmp_path)


def test_a_truncated_weight_file_is_refused(weights, tmp_path):
    aligned().save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        AlignedEncoder.from_pretrained(tmp_path)


def test_heads_and_backbones_must_fit():
    backbones = {m: Backbone(f"fake-{m}", FakeBackbone(m).fingerprint(m), WIDTH[m]) for m in WIDTH}
    heads = {"image": GlobalHead(HeadConfig(6, (4,))), "text": GlobalHead(HeadConfig(5, (3,)))}
    with pytest.raises(ConfigError, match="same length, got 4 and 3"):
        AlignedEncoder(backbones, heads)
    with pytest.raises(ConfigError, match="head for texts"):
        AlignedEncoder(backbones, {"image": heads["image"]})


def test_a_head_can_read_the_summary_token(weights, tmp_path):
    torch.manual_seed(0)
    backbones = {m: Backbone(f"fake-{m}", FakeBackbone(m).fingerprint(m), WIDTH[m]) for m in WIDTH}
    heads = {m: GlobalHead(HeadConfig(WIDTH[m], (4,), input="summary", pooler=m == "text")) for m in WIDTH}
    AlignedEncoder(backbones, heads).save(tmp_path)
    encoder = AlignedEncoder.from_pretrained(tmp_path)
    backbone = FakeBackbone("text").encode_texts(["cat", "a dog", "an owl"])
    expected = heads["text"](backbone.tokens[::2])
    assert torch.equal(encoder.project("text", backbone).embedding, expected)
    assert torch.equal(encoder.encode_texts(["cat", "a dog", "an owl"]).embedding, expected)
    ragged = Encoded(backbone.embedding, backbone.tokens[[0, 2, 3, 1, 4]], torch.tensor([1, 3, 1]))
    assert torch.equal(encoder.project("text", ragged).embedding, expected)


def test_backbones_in_folders_move_with_the_encoder(tmp_path):
    (tmp_path / "run" / "image").mkdir(parents=True)
    prints = {m: Fingerprint(f"convnext:image {m}", "local", "a" * 64, "b" * 64) for m in WIDTH}
    specs = {"image": f"convnext:{tmp_path / 'run' / 'image'}", "text": "bert:bert-base-uncased"}
    heads = {m: GlobalHead(HeadConfig(WIDTH[m], (4,))) for m in WIDTH}
    encoder = AlignedEncoder({m: Backbone(specs[m], prints[m], WIDTH[m]) for m in WIDTH}, heads)
    encoder.save(tmp_path / "run")
    assert encoder.backbones["image"].spec == specs["image"]
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = AlignedEncoder.from_pretrained(tmp_path / "moved")
    assert moved.backbones["image"].spec == f"convnext:{tmp_path / 'moved' / 'image'}"
    assert moved.backbones["text"].spec == specs["text"]
    assert moved.fingerprint("image") == encoder.fingerprint("image")
