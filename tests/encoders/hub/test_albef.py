"""ALBEF against a plain forward pass by the names in its authors' checkpoints."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from damaged_files import damaged_copies
from encoders.hub.models import WORDS
from PIL import Image
from torch.nn import functional as F

from modalloy.encoders import Encoder, load_encoder
from modalloy.encoders.check import check_encoder
from modalloy.encoders.hub.albef import interpolate_positions
from modalloy.encoders.hub.albef_checkpoint import AlbefCheckpoint
from modalloy.errors import CheckpointError, ConfigError

Draw = Callable[..., Image.Image]
Weights = dict[str, torch.Tensor]

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), "##s", "'", ","]
WIDTH, PATCH, GRID, JOINT = 128, 4, 4, 24
TEXTS = ["a red phone", "the old dog runs with a small blue telephone", "cat"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _vision_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + GRID**2, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    for block in range(2):
        parts = {
            "norm1.weight": (WIDTH,),
            "norm1.bias": (WIDTH,),
            "attn.qkv.weight": (3 * WIDTH, WIDTH),
            "attn.qkv.bias": (3 * WIDTH,),
            "attn.proj.weight": (WIDTH, WIDTH),
            "attn.proj.bias": (WIDTH,),
            "norm2.weight": (WIDTH,),
            "norm2.bias": (WIDTH,),
            "mlp.fc1.weight": (48, WIDTH),
            "mlp.fc1.bias": (48,),
            "mlp.fc2.weight": (WIDTH, 48),
            "mlp.fc2.bias": (WIDTH,),
        }
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in parts.items()}
    return shapes


def _text_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), WIDTH),
        "embeddings.position_embeddings.weight": (40, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    for layer in range(4):
        attentions = ["attention"] + (["crossattention"] if layer >= 2 else [])
        linear = {"intermediate.dense": (56, WIDTH), "output.dense": (WIDTH, 56)}
        for attention in attentions:
            linear |= {f"{attention}.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
            linear[f"{attention}.output.dense"] = (WIDTH, WIDTH)
        for name, shape in linear.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
        for name in ("output", *(f"{attention}.output" for attention in attentions)):
            for kind in ("weight", "bias"):
                shapes[f"encoder.layer.{layer}.{name}.LayerNorm.{kind}"] = (WIDTH,)
    return shapes


def make_weights(pretrained: bool = False) -> Weights:
    """Random weights by the authors' names, with momentum copies, queues and heads that have no part in retrieval."""
    generator = torch.Generator().manual_seed(0)
    text = "text_encoder.bert." if pretrained else "text_encoder."
    shapes: dict[str, tuple[int, ...]] = {}
    for momentum in ("", "_m"):
        shapes |= {f"visual_encoder{momentum}.{name}": shape for name, shape in _vision_shapes().items()}
        inner = text.replace("text_encoder", f"text_encoder{momentum}")
        shapes |= {f"{inner}{name}": shape for name, shape in _text_shapes().items()}
        for modality in ("vision", "text"):
            shapes |= {f"{modality}_proj{momentum}.weight": (JOINT, WIDTH), f"{modality}_proj{momentum}.bias": (JOINT,)}
    shapes |= {"itm_head.weight": (2, WIDTH), "itm_head.bias": (2,), "image_queue": (JOINT, 8), "temp": ()}
    if pretrained:
        shapes |= {"text_encoder.cls.predictions.bias": (len(VOCABULARY),)}
    weights = {name: torch.randn(shape, generator=generator) * 0.15 for name, shape in shapes.items()}
    weights["queue_ptr"] = torch.zeros(1, dtype=torch.long)
    weights[f"{text}embeddings.position_ids"] = torch.arange(40)[None]
    return weights


def save(path: Path, weights: Weights, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights, "epoch": 3, **content}, path)
    (path.parent / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return path


def _linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(weights: Weights, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Two heads of 64, over "tokens width"."""
    heads = []
    for head in (slice(0, 64), slice(64, 128)):
        scores = query[:, head] @ key[:, head].T / 8
        heads.append(scores.softmax(dim=-1) @ value[:, head])
    return torch.cat(heads, dim=-1)


def reference_image(weights: Weights, image: Image.Image, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    x = torch.tensor((pixels - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)[None]
    visual = {key.removeprefix("visual_encoder."): value for key, value in weights.items()}
    x = F.conv2d(x, visual["patch_embed.proj.weight"], visual["patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([visual["cls_token"][0], x[0].flatten(1).T])
    positions = visual["pos_embed"]
    if size // PATCH != GRID:
        grid = positions[:, 1:].reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(size // PATCH, size // PATCH), mode="bicubic", align_corners=False)
        positions = torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    x = x + positions[0]
    for block in range(2):
        name = f"blocks.{block}"
        query, key, value = _linear(visual, f"{name}.attn.qkv", _norm(visual, f"{name}.norm1", x, 1e-6)).chunk(
            3, dim=-1
        )
        x = x + _linear(visual, f"{name}.attn.proj", _attend(query, key, value))
        inner = F.gelu(_linear(visual, f"{name}.mlp.fc1", _norm(visual, f"{name}.norm2", x, 1e-6)))
        x = x + _linear(visual, f"{name}.mlp.fc2", inner)
    x = _norm(visual, "norm", x, 1e-6)
    return x, F.normalize(_linear(weights, "vision_proj", x[0]), dim=-1)


def reference_text(weights: Weights, words: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    text = {key.replace("text_encoder.", "").replace("bert.", ""): value for key, value in weights.items()}
    ids = torch.tensor([VOCABULARY.index(word) for word in words])
    x = text["embeddings.word_embeddings.weight"][ids] + text["embeddings.token_type_embeddings.weight"][0]
    x = _norm(text, "embeddings.LayerNorm", x + text["embeddings.position_embeddings.weight"][: len(ids)], 1e-12)
    for layer in range(2):
        name = f"encoder.layer.{layer}"
        parts = [_linear(text, f"{name}.attention.self.{part}", x) for part in ("query", "key", "value")]
        attended = _linear(text, f"{name}.attention.output.dense", _attend(*parts))
        x = _norm(text, f"{name}.attention.output.LayerNorm", x + attended, 1e-12)
        inner = F.gelu(_linear(text, f"{name}.intermediate.dense", x))
        x = _norm(text, f"{name}.output.LayerNorm", x + _linear(text, f"{name}.output.dense", inner), 1e-12)
    return x, F.normalize(_linear(weights, "text_proj", x[0]), dim=-1)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return make_weights()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> Path:
    return save(tmp_path_factory.mktemp("albef") / "flickr30k.pth", weights)


@pytest.fixture(scope="module")
def albef(path: Path) -> Encoder:
    return load_encoder(f"albef:{path}")


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [16, 24])
def test_images_are_the_reference_s(size: int, path: Path, weights: Weights, picture: Draw) -> None:
    encoder = load_encoder(f"albef:{path}" + ("" if size == 16 else f"@{size}"))
    images = [picture(0), picture(1, 90, 40), picture(2, 30, 77)]
    encoded = encoder.encode_images(images)
    for image, tokens, embedding in zip(images, encoded.tokens_of_each(), encoded.embedding, strict=True):
        expected, vector = reference_image(weights, image, size)
        _close(tokens, expected)
        _close(embedding, vector)
    assert encoder.token_grid() == (size // PATCH, size // PATCH)


@pytest.mark.parametrize("pretrained", [False, True])
def test_texts_are_the_reference_s(pretrained: bool, tmp_path: Path) -> None:
    weights = make_weights(pretrained)
    encoder = load_encoder(f"albef:{save(tmp_path / 'some.pth', weights)}")
    encoded = encoder.encode_texts(TEXTS)
    for text, tokens, embedding in zip(TEXTS, encoded.tokens_of_each(), encoded.embedding, strict=True):
        expected, vector = reference_text(weights, ["[CLS]", *text.split()])
        _close(tokens, expected)
        _close(embedding, vector)


def test_texts_are_rewritten_and_end_without_a_separator(albef: Encoder, weights: Weights) -> None:
    assert albef.token_texts("A red dog's house, old!") == ["[CLS]", "a", "red", "dog", "##s", "house", "old"]
    found = albef.encode_texts(["A red DOG, old!"]).embedding[0]
    _close(found, reference_text(weights, ["[CLS]", "a", "red", "dog", "old"])[1])
    for other in (["a", "red", "dog", "old", "[SEP]"], ["a", "red", "dog", ",", "old"]):
        assert (found - reference_text(weights, ["[CLS]", *other])[1]).abs().max() > 1e-3


def test_long_texts_are_cut_to_thirty_tokens(albef: Encoder, weights: Weights) -> None:
    encoded = albef.encode_texts(["dogs " * 40])
    expected, _ = reference_text(weights, ["[CLS]", *["dog", "##s"] * 14, "dog"])
    assert encoded.lengths.tolist() == [30]
    _close(encoded.tokens, expected)


def test_the_batch_does_not_change_an_item(albef: Encoder, picture: Draw) -> None:
    _close(albef.encode_texts(TEXTS).tokens, albef.encode_texts(TEXTS, batch_size=1).tokens)
    images = [picture(0), picture(1), picture(2)]
    _close(albef.encode_images(images).tokens, albef.encode_images(images, batch_size=2).tokens)
    check_encoder(albef)


def test_momentum_copies_and_queues_are_ignored(tmp_path: Path, weights: Weights, albef: Encoder) -> None:
    kept = {
        name: value
        for name, value in weights.items()
        if "_m." not in name and "queue" not in name and not name.startswith("itm_head")
    }
    assert len(kept) < len(weights) - 60
    encoder = load_encoder(f"albef:{save(tmp_path / 'flickr30k.pth', kept)}")
    _close(encoder.encode_texts(TEXTS).tokens, albef.encode_texts(TEXTS).tokens)


def test_positions_are_interpolated_bicubically() -> None:
    positions = torch.randn(1, 17, 8, generator=torch.Generator().manual_seed(0))
    found = interpolate_positions(positions, 6)
    grid = positions[0, 1:].T.reshape(1, 8, 4, 4)
    expected = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)[0].reshape(8, 36).T
    torch.testing.assert_close(found[0, 0], positions[0, 0])
    torch.testing.assert_close(found[0, 1:], expected)
    assert interpolate_positions(positions, 4) is positions


@pytest.mark.parametrize(
    ("file", "pretrained", "content", "name"),
    [
        ("ALBEF.pth", True, {}, "ALBEF (pretrained)"),
        ("ALBEF_4M.pth", True, {}, "ALBEF 4M (pretrained)"),
        ("flickr30k.pth", False, {}, "ALBEF (fine-tuned on Flickr30k)"),
        ("mscoco.pth", False, {}, "ALBEF (fine-tuned on MSCOCO)"),
        ("Retrieval_flickr/checkpoint_best.pth", False, {}, "ALBEF (fine-tuned on Flickr30k)"),
        ("x/best.pth", False, {"config": {"train_file": ["data/coco_train.json"]}}, "ALBEF (fine-tuned on MSCOCO)"),
        ("x/best.pth", False, {"config": {"image_res": 384}}, "ALBEF (fine-tuned, best)"),
        ("refcoco.pth", False, {}, "ALBEF (fine-tuned, refcoco)"),
        ("x/flickr.pth", True, {}, "ALBEF (pretrained)"),
    ],
)
def test_the_name_tells_the_fine_tuning(
    file: str, pretrained: bool, content: dict[str, Any], name: str, tmp_path: Path
) -> None:
    encoder = load_encoder(f"albef:{save(tmp_path / 'models' / file, make_weights(pretrained), **content)}")
    assert encoder.name == name
    assert encoder.fingerprint("image").name == f"albef:{name} image"


def test_the_size_is_in_name_and_fingerprint(path: Path, albef: Encoder) -> None:
    other = load_encoder(f"albef:{path}@24")
    assert other.name == "ALBEF (fine-tuned on Flickr30k) at 24 px"
    assert other.spec == f"albef:{path}@24"
    made, found = albef.fingerprint("image"), other.fingerprint("image")
    assert made.weights_sha256 == found.weights_sha256
    assert made.preprocessing_sha256 != found.preprocessing_sha256
    assert load_encoder(f"albef:{path}@16").fingerprint("image") == made


def test_checkpoints_of_several_processes_are_read(tmp_path: Path, weights: Weights, albef: Encoder) -> None:
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    encoder = load_encoder(f"albef:{save(tmp_path / 'flickr30k.pth', wrapped)}")
    _close(encoder.encode_texts(TEXTS).embedding, albef.encode_texts(TEXTS).embedding)


@pytest.mark.parametrize(
    "missing",
    [
        "vision_proj.weight",
        "visual_encoder.blocks.1.attn.qkv.bias",
        "visual_encoder.pos_embed",
        "text_encoder.encoder.layer.1.attention.self.key.weight",
        "text_encoder.embeddings.LayerNorm.bias",
    ],
)
def test_a_missing_weight_is_an_error(missing: str, tmp_path: Path, weights: Weights) -> None:
    less = {name: value for name, value in weights.items() if name != missing}
    with pytest.raises(CheckpointError, match=r"lacks .*(" + missing.split(".", 1)[1].replace(".", r"\.") + ")"):
        load_encoder(f"albef:{save(tmp_path / 'x.pth', less)}")


class _Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_a_malicious_pickle_is_refused(tmp_path: Path, weights: Weights) -> None:
    path = save(tmp_path / "x.pth", weights, evil=_Evil(f"touch {tmp_path / 'ran'}"))
    with pytest.raises(CheckpointError, match="can't be read safely"):
        AlbefCheckpoint.read(path)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_checkpoints(tmp_path: Path, weights: Weights) -> None:
    path = save(tmp_path / "x.pth", weights)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"x\.pth (is damaged|can't be read safely)"):
        load_encoder(f"albef:{path}")
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds no weights under 'model'"):
        load_encoder(f"albef:{path}")
    wrong = {**weights, "text_proj.weight": torch.zeros(3, 7)}
    with pytest.raises(CheckpointError, match="text_proj"):
        load_encoder(f"albef:{save(path, wrong)}")
    wrong = {**weights, "visual_encoder.norm.weight": torch.zeros(3)}
    with pytest.raises(CheckpointError, match="visual_encoder"):
        load_encoder(f"albef:{save(path, wrong)}")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("visual_encoder.pos_embed", (1, 18, WIDTH)),
        ("visual_encoder.pos_embed", (1, 17, 30)),
        ("visual_encoder.patch_embed.proj.weight", ()),
        ("visual_encoder.blocks.0.mlp.fc1.bias", ()),
        ("text_encoder.embeddings.word_embeddings.weight", (3,)),
    ],
)
def test_weights_of_odd_shapes(name: str, shape: tuple[int, ...], tmp_path: Path, weights: Weights) -> None:
    path = save(tmp_path / "x.pth", {**weights, name: torch.zeros(shape)})
    for source in (path, f"{path}@24"):
        with pytest.raises(CheckpointError, match=r"x\.pth"):
            load_encoder(f"albef:{source}")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_gives_one_clear_line(zipped: bool, tmp_path: Path) -> None:
    path, refused = tmp_path / "x.pth", 0
    torch.save({"model": {"a": torch.zeros(3)}}, path, _use_new_zipfile_serialization=zipped)
    for damaged in damaged_copies(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            AlbefCheckpoint.read(path)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_sources_that_cannot_work(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="isn't a file; name the checkpoint itself"):
        load_encoder(f"albef:{path.parent}")
    with pytest.raises(ConfigError, match="isn't a file"):
        load_encoder(f"albef:{tmp_path}/none.pth@384")
    with pytest.raises(ConfigError, match="must be a multiple of 4 pixels"):
        load_encoder(f"albef:{path}@18")
    for size in ("", "x", "0", "-4", "²"):
        with pytest.raises(ConfigError, match="whole number after the @"):
            load_encoder(f"albef:{path}@{size}")


def test_the_vocabulary(tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    path = save(tmp_path / "x.pth", weights)
    vocabulary = path.parent / "vocab.txt"
    vocabulary.write_text("a\nb\n")
    with pytest.raises(CheckpointError, match="lacks \\[CLS\\] or \\[PAD\\]"):
        load_encoder(f"albef:{path}")
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]"]))
    with pytest.raises(CheckpointError, match=r"4 words, but .* 25"):
        load_encoder(f"albef:{path}")
    vocabulary.unlink()
    with pytest.raises(ConfigError, match=r"put the vocab.txt of bert-base-uncased into .*HF_HUB_OFFLINE is set"):
        load_encoder(f"albef:{path}")
