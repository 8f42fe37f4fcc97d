"""Published HADA checkpoints, written with their real keys, read through the real path, against their computation."""

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import original_hada as published
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from modalloy.encoders import Encoded, Encoder, Fingerprint, Modality
from modalloy.errors import CheckpointError, ConfigError
from modalloy.features import FeatureStore
from modalloy.fusion import Alloy, EncoderFeatures, FeatureSet, InputShape, TowerConfig
from modalloy.interop.hada_checkpoint import HadaCheckpoint, import_hada_checkpoint, read_hada_checkpoint
from modalloy.interop.hada_features import import_hada_features

WIDTHS, DIMS, DIM, OUTPUT = (6, 5), (3, 4), 8, 7
SHAPES = [InputShape(3, 6, 6), InputShape(4, 5, 5)]
SAME_WIDTHS = [InputShape(3, 6, 6), InputShape(4, 6, 6)]
IMAGES, TEXTS = [(9, 2), (4, 7), (1, 1)], [(5, 1), (6, 3), (2, 2), (7, 5)]


def checkpoint(widths=WIDTHS, dims=DIMS, dim=DIM, output=OUTPUT, norms=False, **entries: Any) -> dict[str, Any]:
    return {
        "epoch": 11,
        "img_encoder": published.random_state(widths, dims, dim, output, norms=norms, seed=1),
        "cap_encoder": published.random_state(widths, dims, dim, output, norms=norms, seed=2),
        "discriminator": published.random_discriminator(output, norms=norms),
        # The authors save parameters, not tensors.
        "temp_para": torch.nn.Parameter(torch.tensor(0.0123)),
        "best_loss": 0.25,
        **entries,
    }


def b2_checkpoint(dims=DIMS, output=OUTPUT, **entries: Any) -> dict[str, Any]:
    """With the LayerNorms that the authors' code makes and never calls."""
    made = checkpoint(dims=dims, output=output, **entries)
    for entry, seed in (("img_encoder", 3), ("cap_encoder", 4)):
        generator = torch.Generator().manual_seed(seed)
        made[entry] = {
            "enc.linear.0.weight": torch.randn(output, sum(dims), generator=generator),
            "enc.linear.0.bias": torch.randn(output, generator=generator),
            "enc.norm.0.weight": torch.full((output,), 2.0),
            "enc.norm.0.bias": torch.full((output,), -1.0),
        }
    made["discriminator"] |= {"disc.norm.0.weight": torch.tensor([3.0]), "disc.norm.0.bias": torch.tensor([1.0])}
    return made


def weight(value: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(value))


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    def save(content: Any) -> Path:
        torch.save(content, tmp_path / "best.pth.tar")
        return tmp_path / "best.pth.tar"

    return save


def features_of(items: Sequence[published.Item]) -> list[EncoderFeatures]:
    inputs = []
    for model in (0, 1):
        lengths = torch.tensor([len(item[model]) for item in items])
        tokens = torch.nn.utils.rnn.pad_sequence([item[model] for item in items], batch_first=True)
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        inputs.append(EncoderFeatures(torch.stack([item[2 + model] for item in items]), tokens, mask))
    return inputs


def global_scores(image: list[published.Item], text: list[published.Item], model: int) -> Tensor:
    globals_ = [torch.stack([item[2 + model] for item in items]) for items in (image, text)]
    return globals_[0] @ globals_[1].T


def require_equal(
    read: HadaCheckpoint,
    content: dict[str, Any],
    shares: Sequence[float],
    widths=WIDTHS,
    dims=DIMS,
    image_lengths=IMAGES,
    text_lengths=TEXTS,
    mixed_tokens: bool = False,
) -> None:
    image = published.random_items(image_lengths, widths, dims, seed=5)
    text = published.random_items(text_lengths, widths, dims, seed=6)
    expected = [
        published.embed(content[entry], items, mixed_tokens=mixed_tokens)
        for entry, items in (("img_encoder", image), ("cap_encoder", text))
    ]
    fused = [read.fuser("image", features_of(image)), read.fuser("text", features_of(text))]
    for ours, theirs in zip(fused, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    scores = (1 - sum(shares)) * expected[0] @ expected[1].T
    for model, share in enumerate(shares):
        scores = scores + share * global_scores(image, text, model)
    vectors = read.fuser.embed("image", features_of(image)), read.fuser.embed("text", features_of(text))
    torch.testing.assert_close(vectors[0] @ vectors[1].T, scores, rtol=0, atol=1e-5)
    pairs = min(len(image), len(text))
    matching = read.fuser.matching(fused[0][:pairs], fused[1][:pairs]).sigmoid()
    probabilities = published.discriminate(content["discriminator"], expected[0][:pairs], expected[1][:pairs])
    torch.testing.assert_close(matching, probabilities, rtol=0, atol=1e-5)


def test_the_second_stage(save):
    content = checkpoint(weight_albef=weight(0.37))
    read = read_hada_checkpoint(save(content), SHAPES)
    assert read.variant == "HADA stage 2"
    require_equal(read, content, [0.37])
    assert read.temperature == pytest.approx(0.0123)
    assert read.epoch == 11
    assert read.left_out == ("best_loss",)
    assert read.fuser.config.dropout == 0.7
    assert not read.fuser.training


def test_the_second_stage_at_the_published_size(save):
    widths, dims = (768, 768), (256, 768)
    content = checkpoint(widths, dims, 512, 512, weight_albef=weight(0.62))
    read = read_hada_checkpoint(save(content), [InputShape(256, 768, 768), InputShape(768, 768, 768)])
    require_equal(read, content, [0.62], widths, dims, [(577, 41), (577, 12)], [(14, 13), (9, 21), (30, 30)])


def test_the_first_stage(save):
    content = checkpoint(norms=True, optimizer={"state": {}, "param_groups": []})
    read = read_hada_checkpoint(save(content), SHAPES)
    assert read.variant == "HADA stage 1"
    require_equal(read, content, [])
    assert read.fuser.config.original.norm == "batch"
    assert read.fuser.config.dropout == 0.3
    assert read.left_out == ("best_loss", "optimizer")


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ({"weight_1": weight(0.3)}, [0.3]),
        ({"weight_1": 0}, []),
        ({"weight_0": weight(1.0), "weight_1": weight(1.0), "weight_2": weight(0.5)}, [0.4, 0.2]),
        ({"weight_0": weight(0.0), "weight_1": weight(0.7), "weight_2": weight(1.7)}, [0.7 / 2.4, 1.7 / 2.4]),
    ],
    ids=["one input", "none", "both", "both, not fused"],
)
def test_the_lavis_variant_repaired(save, weights, shares):
    content = checkpoint((6, 6), **weights)
    read = read_hada_checkpoint(save(content), SAME_WIDTHS)
    assert read.variant == "HADA-LAVIS"
    require_equal(read, content, shares, (6, 6))


def test_the_lavis_variant_as_its_authors_have_it(save):
    content = checkpoint((6, 6), weight_1=weight(0.3))
    path = save(content)
    faithful = read_hada_checkpoint(path, SAME_WIDTHS, lavis="faithful")
    texts = [(5, 1), (6, 3), (2, 8), (7, 5)]
    require_equal(faithful, content, [0.3], (6, 6), text_lengths=texts, mixed_tokens=True)
    repaired = read_hada_checkpoint(path, SAME_WIDTHS)
    inputs = features_of(published.random_items(texts, (6, 6), DIMS))
    assert (repaired.fuser("text", inputs) - faithful.fuser("text", inputs)).norm(dim=1).min() > 1e-2


@pytest.mark.parametrize("content", [checkpoint(), checkpoint(weight_albef=weight(0.5)), b2_checkpoint()])
def test_the_mix_up_is_only_lavis(save, content):
    with pytest.raises(ConfigError, match="lavis='faithful' is for checkpoints of HADA-LAVIS"):
        read_hada_checkpoint(save(content), SHAPES, lavis="faithful")


@pytest.mark.parametrize("weights", [{}, {"weight_albef": weight(0.8)}], ids=["first stage", "second stage"])
@pytest.mark.parametrize("dims", [DIMS, (256, 768)], ids=["small", "published size"])
def test_the_baseline_b2(save, weights, dims):
    content = b2_checkpoint(dims, 512 if dims == (256, 768) else OUTPUT, **weights)
    shapes = [InputShape(dims[0], 6, 6), InputShape(dims[1], 5, 5)]
    read = read_hada_checkpoint(save(content), shapes)
    assert read.variant == "B2"
    image, text = (published.random_items([(1, 1)] * count, WIDTHS, dims, seed=count) for count in (3, 4))
    expected = []
    for entry, items in (("img_encoder", image), ("cap_encoder", text)):
        state = content[entry]
        joined = torch.cat([torch.stack([item[2 + model] for item in items]) for model in (0, 1)], dim=1)
        expected.append(F.normalize(F.linear(joined, state["enc.linear.0.weight"], state["enc.linear.0.bias"]), dim=1))
    torch.testing.assert_close(read.fuser("image", features_of(image)), expected[0], rtol=0, atol=1e-5)
    share = 0.8 if weights else 0.0
    scores = (1 - share) * expected[0] @ expected[1].T + share * global_scores(image, text, 0)
    vectors = read.fuser.embed("image", features_of(image)), read.fuser.embed("text", features_of(text))
    torch.testing.assert_close(vectors[0] @ vectors[1].T, scores, rtol=0, atol=1e-5)
    matching = read.fuser.matching(expected[0], expected[1][:3]).sigmoid()
    linear = {key: value for key, value in content["discriminator"].items() if "norm" not in key}
    probabilities = published.discriminate(linear, expected[0], expected[1][:3])
    torch.testing.assert_close(matching, probabilities, rtol=0, atol=1e-5)
    assert set(read.left_out) == {
        "best_loss",
        *(f"{entry}.enc.norm.0.{name}" for entry in ("img_encoder", "cap_encoder") for name in ("weight", "bias")),
        *(f"discriminator.disc.norm.0.{name}" for name in ("weight", "bias")),
    }


def test_another_standardisation(save):
    path = save(checkpoint(weight_albef=weight(0.5)))
    inputs = features_of(published.random_items(IMAGES, WIDTHS, DIMS))
    published_constants, others = (
        read_hada_checkpoint(path, SHAPES),
        read_hada_checkpoint(path, SHAPES, mean=0.0, std=1.0),
    )
    assert (published_constants.fuser("image", inputs) - others.fuser("image", inputs)).norm() > 1e-2


class Listed(Encoder):
    """Gives prepared features: an image's number is its height, a text's is what it says."""

    modalities: tuple[Modality, ...] = ("image", "text")

    def __init__(self, model: int, widths=WIDTHS, dims=DIMS) -> None:
        self.model = model
        self.name = f"Listed {model}"
        self.spec = f"listed-{model}"
        self.items = {
            "image": published.random_items(IMAGES, widths, dims, seed=5),
            "text": published.random_items(TEXTS, widths, dims, seed=6),
        }

    def fingerprint(self, modality: Modality) -> Fingerprint:
        return Fingerprint(f"{self.spec} {modality}", "1", "a" * 64, "b" * 64)

    def dim(self, modality: Modality) -> int:
        return len(self.items[modality][0][2 + self.model])

    def width(self, modality: Modality) -> int:
        return self.items[modality][0][self.model].shape[1]

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
        return torch.tensor(item.height - 1 if isinstance(item, Image.Image) else int(item))

    def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
        chosen = [self.items[modality][int(number)] for number in prepared]
        tokens = [item[self.model] for item in chosen]
        lengths = torch.tensor([len(each) for each in tokens])
        return Encoded(torch.stack([item[2 + self.model] for item in chosen]), torch.cat(tokens), lengths)


@pytest.fixture
def load(monkeypatch):
    def load_encoder(spec: str) -> Encoder:
        kind, colon, argument = spec.partition(":")
        return Alloy.from_pretrained(argument) if colon else Listed(int(kind.removeprefix("listed-")))

    monkeypatch.setattr("modalloy.fusion.alloy.load_encoder", load_encoder)
    monkeypatch.setattr("modalloy.interop.hada_checkpoint.load_encoder", load_encoder)


@pytest.mark.parametrize("norms", [False, True], ids=["second stage", "first stage"])
def test_an_imported_alloy_is_loaded_again(save, load, tmp_path, norms):
    content = checkpoint(norms=norms, **({} if norms else {"weight_albef": weight(0.37)}))
    imported = import_hada_checkpoint(save(content), ["listed-0", Listed(1)], tmp_path / "alloy")
    assert imported.alloy.spec == f"alloy:{tmp_path / 'alloy'}"
    loaded = Alloy.from_pretrained(tmp_path / "alloy")
    pictures = [Image.new("RGB", (1, height)) for height in (1, 2, 3)]
    texts = ["0", "1", "2", "3"]
    share = 0.0 if norms else 0.37
    scores = (1 - share) * published.embed(content["img_encoder"], Listed(0).items["image"]) @ published.embed(
        content["cap_encoder"], Listed(0).items["text"]
    ).T + share * global_scores(Listed(0).items["image"], Listed(0).items["text"], 0)
    for alloy in (imported.alloy, loaded):
        product = alloy.encode_images(pictures, batch_size=2).embedding @ alloy.encode_texts(texts).embedding.T
        torch.testing.assert_close(product, scores, rtol=0, atol=1e-5)
    assert loaded.fingerprint("text") == imported.alloy.fingerprint("text")
    summary = imported.summary()
    assert json.loads(json.dumps(summary))["inputs"] == ["listed-0", "listed-1"]
    assert summary["similarity_weights"] == pytest.approx([1.0] if norms else [0.63, 0.37])
    assert summary["variant"] == ("HADA stage 1" if norms else "HADA stage 2")


def test_encoders_in_the_wrong_order_or_number(save, load, tmp_path):
    path = save(checkpoint())
    with pytest.raises(ConfigError, match=r"takes image tokens 6 wide, but encoder 1 of 2 gives 5.*in its order"):
        import_hada_checkpoint(path, ["listed-1", "listed-0"], tmp_path / "alloy")
    with pytest.raises(ConfigError, match="fuses two encoders, got 3"):
        import_hada_checkpoint(path, ["listed-0", "listed-1", "listed-0"], tmp_path / "alloy")
    unsaved = Listed(1)
    unsaved.spec = "listed:unsaved"
    with pytest.raises(ConfigError, match="isn't saved yet"):
        import_hada_checkpoint(path, ["listed-0", unsaved], tmp_path / "alloy")
    assert not (tmp_path / "alloy").exists()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([InputShape(3, 6, 6), InputShape(4, 5, 7)], "text tokens 5 wide, but encoder 2 of 2 gives 7"),
        ([InputShape(3, 8, 6), InputShape(4, 5, 5)], "image tokens 6 wide, but encoder 1 of 2 gives 8"),
        ([InputShape(5, 6, 6), InputShape(4, 5, 5)], "embeddings that are 2 narrower together"),
        ([InputShape(3, 6, 6), InputShape(1, 5, 5)], "embeddings that are 3 wider together"),
        ([InputShape(3, 6, 6)] * 3, "fuses two encoders, got 3"),
        ([InputShape(3, 6, 6)], "fuses two encoders, got 1"),
    ],
)
def test_other_widths_are_named(save, shapes, message):
    with pytest.raises(ConfigError, match=message):
        read_hada_checkpoint(save(checkpoint()), shapes)


def test_other_widths_of_the_baseline_are_named(save):
    with pytest.raises(ConfigError, match="embeddings that are 1 narrower together"):
        read_hada_checkpoint(save(b2_checkpoint()), [InputShape(3, 6, 6), InputShape(5, 5, 5)])


def without(content: dict[str, Any], entry: str, *keys: str) -> dict[str, Any]:
    return content | {entry: {key: value for key, value in content[entry].items() if key not in keys}}


def with_tensor(content: dict[str, Any], entry: str, key: str, value: Any) -> dict[str, Any]:
    return content | {entry: content[entry] | {key: value}}


CONV = "enc.gcn.gcn.conv.0"
BROKEN: dict[str, tuple[Any, str]] = {
    "a list": ([1, 2], "isn't a HADA checkpoint.*got list"),
    "another model's": ({"state_dict": {}}, r"isn't a HADA checkpoint.*got \['state_dict'\]"),
    "no state dict": (checkpoint(img_encoder=torch.zeros(3)), "its 'img_encoder' must be a state dict"),
    "no tensors": (with_tensor(checkpoint(), "cap_encoder", CONV, 3), "its 'cap_encoder' must be a state dict"),
    "without a size": (without(checkpoint(), "img_encoder", f"{CONV}.att"), f"lacks '{CONV}.att'"),
    "without edges": (
        without(checkpoint(), "cap_encoder", f"{CONV}.lin_edge.weight", "enc.lin.linear.0.bias"),
        rf"'cap_encoder' isn't the published one: missing are \['{CONV}.lin_edge.weight', 'enc.lin.linear.0.bias'\]",
    ),
    "without a matching head": (checkpoint(discriminator={}), "'discriminator' .*missing are .*disc.linear.0.weight"),
    "with more": (
        with_tensor(checkpoint(), "img_encoder", "enc.cls_a.linear.0.weight", torch.zeros(3, 3)),
        r"unknown are \['enc.cls_a.linear.0.weight'\]",
    ),
    "half normalised": (
        without(checkpoint(norms=True), "cap_encoder", "enc.gcn.gcn.norm.0.running_var"),
        r"missing are \['enc.gcn.gcn.norm.0.running_var'\]",
    ),
    "a norm in the second stage": (
        with_tensor(checkpoint(), "discriminator", "disc.norm.0.weight", torch.ones(1)),
        r"unknown are \['disc.norm.0.weight'\]",
    ),
    "NaN": (
        with_tensor(checkpoint(), "cap_encoder", "enc.lin.linear.0.bias", torch.full((OUTPUT,), torch.nan)),
        "'enc.lin.linear.0.bias' of its 'cap_encoder' holds NaN",
    ),
    "two graph layers": (
        with_tensor(checkpoint(), "img_encoder", "enc.gcn.gcn.conv.1.bias", torch.zeros(32)),
        r"deeper variant.*'img_encoder' has enc.gcn.gcn.conv.1.bias",
    ),
    "a deeper map": (
        with_tensor(checkpoint(), "cap_encoder", "enc.gcn.trans_2.linear.1.weight", torch.zeros(8, 8)),
        "deeper variant.*enc.gcn.trans_2.linear.1.weight",
    ),
    "a deeper matching head": (
        with_tensor(checkpoint(), "discriminator", "disc.linear.1.weight", torch.zeros(1, 1)),
        "deeper variant.*disc.linear.1.weight",
    ),
    "an unknown weight": (checkpoint(weight_md=weight(1.0)), r"weighs similarities by \['weight_md'\]"),
    "a negative weight": (checkpoint(weight_albef=weight(-0.1)), "weights must be numbers of 0 or more"),
    "a NaN weight": (checkpoint(weight_albef=weight(float("nan"))), "weights must be numbers of 0 or more"),
    "a weight of text": (checkpoint(weight_albef="half"), "weights must be numbers of 0 or more"),
    "too large a weight": (checkpoint(weight_albef=weight(1.1)), "of 1 at most"),
    "half the weights": (checkpoint(weight_0=weight(1.0), weight_1=weight(0.1)), "weight_0, weight_1 and weight_2"),
    "no weights": (
        checkpoint(weight_0=weight(0.0), weight_1=weight(0.0), weight_2=weight(0.0)),
        "add up to more than 0",
    ),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_published_checkpoint_is_refused(save, content, message):
    with pytest.raises(CheckpointError, match=message):
        read_hada_checkpoint(save(content), SHAPES)


def test_other_inner_widths_are_refused(save):
    content = with_tensor(checkpoint(), "img_encoder", f"{CONV}.att", torch.zeros(1, 3, DIM))
    with pytest.raises(ConfigError, match=r"'enc.gcn.gcn.conv.0.*should have the shape"):
        read_hada_checkpoint(save(content), SHAPES)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pickled_code_is_not_run(tmp_path, legacy):
    target, path = tmp_path / "it-ran", tmp_path / "best.pth.tar"
    torch.save(checkpoint(best_loss=Malicious(target)), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="more than tensors and numbers"):
        read_hada_checkpoint(path, SHAPES)
    path.write_bytes(pickle.dumps(Malicious(target)))
    with pytest.raises(CheckpointError):
        read_hada_checkpoint(path, SHAPES)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle at all", b"PK\x03\x04 half a zip"])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "best.pth.tar"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best\.pth\.tar isn't a PyTorch checkpoint"):
        read_hada_checkpoint(path, SHAPES)


def test_a_truncated_file_is_refused(save):
    path = save(checkpoint())
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"best\.pth\.tar (is|can't be read)"):
        read_hada_checkpoint(path, SHAPES)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="doesn't exist"):
        read_hada_checkpoint(tmp_path / "best.pth.tar", SHAPES)
    with pytest.raises(CheckpointError, match="can't be read"):
        read_hada_checkpoint(tmp_path, SHAPES)


def test_an_imported_alloy_with_other_encoders_is_refused(save, load, tmp_path, monkeypatch):
    import_hada_checkpoint(save(checkpoint()), ["listed-0", "listed-1"], tmp_path / "alloy")
    monkeypatch.setattr(
        Listed, "fingerprint", lambda self, modality: Fingerprint(f"{self.spec}", "2", "c" * 64, "b" * 64)
    )
    with pytest.raises(CheckpointError, match="was made with"):
        Alloy.from_pretrained(tmp_path / "alloy")


def test_lavis_takes_two_modes(save):
    with pytest.raises((ConfigError, TypeError)):
        read_hada_checkpoint(save(checkpoint(weight_1=0)), SHAPES, lavis="broken")  # type: ignore[arg-type]


def test_an_imported_configuration_trains_on(save):
    read = read_hada_checkpoint(save(checkpoint(norms=True)), SHAPES)
    second = read.fuser.second_stage([0])
    assert isinstance(second.config, TowerConfig)
    inputs = features_of(published.random_items(IMAGES, WIDTHS, DIMS))
    second.train()("image", inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in second.towers["image"].parameters())


def authors_items(layout: Path, id: str, modality: Modality) -> list[published.Item]:
    """What the authors' data loader reads: an image, or its captions cut to their lengths."""
    folders = [layout / f"{model}_Output/flickr30k/{modality}s/{id}.npz" for model in ("ALBEF", "DOT")]
    files = [np.load(folder, allow_pickle=True) for folder in folders]
    if modality == "image":
        tokens, globals_ = [[each["feat"]] for each in files], [[each["proj_embed"]] for each in files]
    else:
        tokens = [[f[: sum(a)] for f, a in zip(each["feat"], each["att"], strict=True)] for each in files]
        globals_ = [list(each["proj_embed"]) for each in files]
    rows = zip(*tokens, *globals_, strict=True)
    return [
        (*map(torch.from_numpy, row[:2]), *(F.normalize(torch.from_numpy(each), dim=0) for each in row[2:]))
        for row in rows
    ]


def test_the_authors_features_and_checkpoint_give_their_scores(save, small, tmp_path):
    widths, dims = (6, 8), (4, 8)
    content = checkpoint(widths, dims, weight_albef=weight(0.37))
    import_hada_features(small, tmp_path / "features", progress=False)
    specs = [f"features:{tmp_path / 'features' / name}" for name in ("albef", "dot")]
    alloy = import_hada_checkpoint(save(content), specs, tmp_path / "alloy").alloy
    ids = sorted(json.loads((small / "JSON/val_matching_image_preprocessed_cap.json").read_text()))
    image, text = (
        [item for id in ids for item in authors_items(small, id, modality)] for modality in ("image", "text")
    )
    scores = 0.63 * published.embed(content["img_encoder"], image) @ published.embed(content["cap_encoder"], text).T
    scores = scores + 0.37 * global_scores(image, text, 0)
    stored = [
        FeatureSet([FeatureStore.open(tmp_path / "features" / name / modality) for name in ("albef", "dot")])
        for modality in ("image", "text")
    ]
    vectors = [alloy.fuser.embed_rows(each, torch.arange(len(each))) for each in stored]
    # Stored tokens are rounded to float16.
    torch.testing.assert_close(vectors[0] @ vectors[1].T, scores, rtol=0, atol=1e-3)
    # Rounded likewise, the published computation agrees as everywhere else.
    image, text = ([(a.half().float(), b.half().float(), *rest) for a, b, *rest in items] for items in (image, text))
    scores = 0.63 * published.embed(content["img_encoder"], image) @ published.embed(content["cap_encoder"], text).T
    scores = scores + 0.37 * global_scores(image, text, 0)
    torch.testing.assert_close(vectors[0] @ vectors[1].T, scores, rtol=0, atol=1e-5)
