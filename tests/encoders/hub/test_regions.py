from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoders.hub import models
from PIL import Image

from modalloy.encoders import load_encoder
from modalloy.encoders.check import check_encoder
from modalloy.encoders.hub.regions import RegionEncoder
from modalloy.errors import CheckpointError, ConfigError

Draw = Callable[..., Image.Image]
KINDS = ["detr", "rt-detr", "rt-detr-v2"]
ARCHITECTURES = {
    "detr": transformers.DetrForObjectDetection,
    "rt-detr": transformers.RTDetrForObjectDetection,
    "rt-detr-v2": transformers.RTDetrV2ForObjectDetection,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each kind."""
    folder = tmp_path_factory.mktemp("detectors")
    return {
        "detr": models.save_detr(folder / "detr"),
        "rt-detr": models.save_rt_detr(folder / "rt"),
        "rt-detr-v2": models.save_rt_detr(folder / "rt2", version="V2"),
    }


def _load(kind: str, folders: dict[str, Path]) -> RegionEncoder:
    encoder = load_encoder(f"{kind.removesuffix('-v2')}:{folders[kind]}")
    assert isinstance(encoder, RegionEncoder)
    return encoder


def _reference(kind: str, folder: Path, image: Image.Image, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The region tokens and the mean state by the library's own calls on one picture, query after query."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = ARCHITECTURES[kind].from_pretrained(folder).eval()
    with torch.no_grad():
        given: Any = model(**processor(images=image, return_tensors="pt"))
    regions = []
    for logits, box, state in zip(given.logits[0], given.pred_boxes[0], given.last_hidden_state[0], strict=True):
        score = float(logits.softmax(-1)[:-1].max() if kind == "detr" else logits.sigmoid().max())
        x, y, width, height = box.tolist()
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2, width, height, width * height]
        regions.append((score, torch.cat([state, torch.tensor(corners)]), state))
    regions.sort(key=lambda region: -region[0])
    kept = [region for region in regions if region[0] > threshold][:100] or regions[:1]
    return torch.stack([token for _, token, _ in kept]), torch.stack([state for *_, state in kept]).mean(dim=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.4, 0.8, 1.0])
def test_regions_are_the_library_s_queries_above_the_threshold(
    kind: str, share: float, folders: dict[str, Path], picture: Draw
) -> None:
    encoder = _load(kind, folders)
    image = picture(3, 50, 40)
    with torch.no_grad():
        inputs = encoder._processors["image"].collate([encoder.preprocess("image", image)])
        scores = encoder._scores(encoder._network(**inputs).logits)[0].sort().values
    # Between two scores, so that rounding can't decide.
    place = round(share * len(scores))
    threshold = float(torch.cat([torch.zeros(1), scores, torch.ones(1)])[place : place + 2].mean())
    encoder._threshold = threshold

    tokens, mean = _reference(kind, folders[kind], image, threshold)
    encoded = encoder.encode_images([image])
    assert encoded.lengths.tolist() == [1 + max(1, len(scores) - place)]
    torch.testing.assert_close(encoded.tokens[1:], tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded.tokens[0], tokens.mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded.embedding[0], torch.nn.functional.normalize(mean, dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "threshold"), [("detr", 0.5), ("rt-detr", 0.3)])
def test_the_documented_threshold_is_used(
    kind: str, threshold: float, folders: dict[str, Path], picture: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = _load(kind, folders)
    scores = torch.linspace(0.04, 0.96, 12)
    monkeypatch.setattr(encoder, "_scores", lambda logits: scores.expand(len(logits), -1))
    assert encoder.encode_images([picture(1, 64, 64)]).lengths.tolist() == [1 + int((scores > threshold).sum())]


def test_at_most_a_hundred_regions_are_kept(
    folders: dict[str, Path], picture: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modalloy.encoders.hub.regions._MOST_REGIONS", 5)
    encoder = _load("rt-detr", folders)
    encoder._threshold = 0.0
    tokens, _ = _reference("rt-detr", folders["rt-detr"], picture(1), 0.0)
    encoded = encoder.encode_images([picture(1)])
    assert encoded.lengths.tolist() == [6]
    torch.testing.assert_close(encoded.tokens[1:], tokens[:5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_several_shapes_do_not_touch_each_other(kind: str, folders: dict[str, Path], picture: Draw) -> None:
    encoder = _load(kind, folders)
    check_encoder(encoder, images=[picture(1, 64, 40), picture(2, 40, 64), picture(3, 64, 40), picture(4, 33, 33)])
    assert encoder.token_grid() is None
    assert encoder.width("image") == encoder.dim("image") + 7


def test_the_threshold_is_in_the_fingerprint(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    before = _load("detr", folders).fingerprint("image")
    monkeypatch.setattr("modalloy.encoders.hub.regions._MOST_REGIONS", 5)
    assert _load("detr", folders).fingerprint("image") != before


def test_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a model of type 'rt_detr', but 'detr' takes 'detr'"):
        load_encoder(f"detr:{folders['rt-detr']}")
    with pytest.raises(ConfigError, match="A region encoder is one of detr, rt-detr, got 'yolo'"):
        RegionEncoder("yolo", str(tmp_path))
    models.save_detr(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="no usable picture processor"):
        load_encoder(f"detr:{tmp_path / 'model'}")
