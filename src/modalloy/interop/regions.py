"""Imports precomputed region features: what an object detector gave for each picture, as bottom-up attention dumps."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modalloy.data import Manifest
from modalloy.encoders import Fingerprint
from modalloy.encoders.base import sha256_of_settings
from modalloy.errors import ConfigError, DataError
from modalloy.features.assembly import Features, Rejection
from modalloy.features.sources import source_of
from modalloy.features.store_manifest import Description
from modalloy.interop.imported_store import FeatureFile, features_of, fill, sample
from modalloy.interop.npz import Array, read_npz

FORMAT = "regions-1"
_FEATURES = ("features", "feat", "x", "bbox_ft")
_PIXEL_BOXES = ("boxes", "bbox", "bbox_pos")
_NORMALIZED_BOXES = "norm_bb"
_SCORES = ("conf", "scores", "objects_conf")
_COUNTS = ("num_boxes", "num_bbox")
_SIZES = (("image_w", "image_h"), ("image_width", "image_height"))
_NAMES = (*_FEATURES, *_PIXEL_BOXES, _NORMALIZED_BOXES, *_SCORES, *_COUNTS, *(name for pair in _SIZES for name in pair))
# Detectors let boxes stand out by a pixel or two.
_TOLERANCE = 0.02


@dataclass(frozen=True)
class RegionChoice:
    """Which of a picture's regions are kept; the defaults are UNITER's and LightningDOT's.

    Raises:
        ConfigError: a number is out of range.
    """

    threshold: float = 0.2
    """Regions of a higher score are kept; without scores all are."""
    least: int = 10
    """At least so many are kept, where there are so many, those of the highest scores."""
    most: int = 100
    """At most so many are kept."""
    normalized: bool = False
    """Whether boxes are shares of the picture's width and height, not pixels; `norm_bb` always are."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ConfigError(f"1 <= least <= most expected of the number of regions, got {self.least}, {self.most}.")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"the score threshold must lie in [0, 1], got {self.threshold}.")


def import_regions(
    folder: str | Path,
    out: str | Path,
    manifest: Manifest,
    *,
    choice: RegionChoice | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Makes a feature store of region features, one `<image id>.npz` a picture; an interrupted run goes on.

    A region's token is its features with the box as UNITER gives it (arXiv 1909.11740, section 3.1): x1, y1, x2, y2,
    width, height and area, as shares of the picture. The summary token, first, is the mean over the regions, and so,
    at unit norm, is the embedding. A missing, damaged or odd file rejects its row.

    The arrays are `features` ("regions width"; also feat, x, bbox_ft) and `boxes` ("regions 4": x1, y1, x2, y2; also
    bbox, bbox_pos, or norm_bb, as shares), with `image_w` and `image_h` where boxes are in pixels, and perhaps
    `num_boxes` (how many rows are regions, the others padding) and scores, `conf` ("regions"; also scores,
    objects_conf, which is joined with attrs_conf as HADA's authors do: (2 objects + attributes) / 3).

    >>> import tempfile
    >>> from modalloy.data import Item
    >>> folder = Path(tempfile.mkdtemp())
    >>> boxes = np.array([[0, 0, 50, 40], [10, 20, 100, 80]])
    >>> np.savez(folder / "cat.npz", features=np.ones((2, 5)), boxes=boxes, image_w=100, image_h=80)
    >>> manifest = Manifest(folder, (Item("cat", "cat.jpg", "0" * 64, "train", ("A cat.",)),))
    >>> made = import_regions(folder, folder / "imported", manifest, progress=False)
    >>> made["rows"], made["width"]
    (1, 12)

    Args:
        folder: holds the files.
        out: gets the store, in its folder "image"; "features:OUT" is then an image backbone.
        manifest: the collection, whose images the rows are.
        choice: which regions are kept.
        progress: shows a bar with the time left on stderr.

    Returns:
        What was made, fit for JSON: the spec, the folder, counts and the number of rejects.

    Raises:
        DataError: the folder isn't there, or none of the files can be used.
        FeatureError: `out` holds other features.
    """
    folder, out, choice = Path(folder), Path(out), choice or RegionChoice()
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name the one that holds the region features, <image id>.npz.")
    source = source_of(manifest, "image")
    files = [FeatureFile(folder / f"{item.id}.npz", range(row, row + 1)) for row, item in enumerate(manifest)]
    read = partial(_read, files, choice)
    try:
        sampled = sample(files, read)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    fingerprint = Fingerprint("regions (precomputed)", FORMAT, sampled.digest, sha256_of_settings(asdict(choice)))
    spec = f"features:{out.resolve()}"
    description = Description(spec, "image", fingerprint, sampled.dim, sampled.width, source.digest())
    store = fill(out / "image", description, source, files, read, progress=progress)
    return {
        "spec": spec,
        "folder": str(store.folder),
        "rows": len(store),
        "rejects": len(store.rejects()),
        "width": store.width,
    }


def _read(files: Sequence[FeatureFile], choice: RegionChoice, number: int) -> list[Features | Rejection]:
    path = files[number].path
    try:
        regions = _regions(read_npz(path, (*_NAMES, "attrs_conf")), choice)
    except DataError as error:
        text = str(error)
        return [Rejection(text if str(path) in text else f"{path}: {text}")]
    summary = regions.mean(0)
    answer = features_of(summary, np.concatenate([summary[None], regions]))
    return [Rejection(f"{path}: {answer.reason}") if isinstance(answer, Rejection) else answer]


def _regions(arrays: dict[str, Array], choice: RegionChoice) -> Array:
    """The kept regions' tokens, "regions width+7", best first where there are scores."""
    features = _numbers(arrays, _FEATURES, "region features", axes=2)
    boxes, normalized = _boxes(arrays, choice)
    count = _count(arrays, len(features))
    if len(boxes) < count:
        raise DataError(f"it holds {count} regions and {len(boxes)} boxes")
    features, boxes = features[:count], boxes[:count, :4]
    if not normalized:
        if boxes.min() >= 0 and boxes.max() <= 1:
            raise DataError("no box reaches beyond the first pixel; perhaps they are shares of width and height")
        boxes = boxes / np.array([*_size(arrays)] * 2)
    _require_inside(boxes, normalized)
    kept = _kept(_scores(arrays, count), count, choice)
    x1, y1, x2, y2 = boxes[kept].T
    width, height = x2 - x1, y2 - y1
    geometry = np.stack([x1, y1, x2, y2, width, height, width * height], axis=1)
    return np.concatenate([features[kept], geometry], axis=1)


def _boxes(arrays: dict[str, Array], choice: RegionChoice) -> tuple[Array, bool]:
    if not any(name in arrays for name in _PIXEL_BOXES) and _NORMALIZED_BOXES in arrays:
        boxes, normalized = _numbers(arrays, (_NORMALIZED_BOXES,), "boxes", axes=2), True
    else:
        boxes, normalized = _numbers(arrays, _PIXEL_BOXES, "boxes", axes=2), choice.normalized
    if boxes.shape[1] < 4:
        raise DataError(f"a box has 4 numbers (x1, y1, x2, y2), got boxes of shape {boxes.shape}")
    return boxes, normalized


def _count(arrays: dict[str, Array], rows: int) -> int:
    name = next((name for name in _COUNTS if name in arrays), None)
    count = rows if name is None else _whole_number(arrays[name], name)
    if not 1 <= count <= rows:
        raise DataError(f"it holds {count} regions in {rows} rows")
    return count


def _size(arrays: dict[str, Array]) -> tuple[int, int]:
    for width, height in _SIZES:
        if width in arrays and height in arrays:
            size = _whole_number(arrays[width], width), _whole_number(arrays[height], height)
            if min(size) < 1:
                raise DataError(f"a picture of {size[0]} x {size[1]} pixels")
            return size
    raise DataError("its boxes are in pixels, but it has no image_w and image_h; say so if they are shares of them")


def _require_inside(boxes: Array, normalized: bool) -> None:
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise DataError("boxes must be x1, y1, x2, y2 with x1 <= x2 and y1 <= y2; perhaps they are x, y, width, height")
    if boxes.min() < -_TOLERANCE or boxes.max() > 1 + _TOLERANCE:
        hint = "perhaps they are in pixels" if normalized else "perhaps image_w and image_h are of another size"
        raise DataError(f"boxes stand out of the picture (shares from {boxes.min():.2f} to {boxes.max():.2f}); {hint}")


def _scores(arrays: dict[str, Array], count: int) -> Array | None:
    if not any(name in arrays for name in _SCORES):
        return None
    scores = _numbers(arrays, _SCORES, "scores", axes=1)
    if "objects_conf" in arrays and "attrs_conf" in arrays:
        objects, attributes = (_numbers(arrays, (name,), "scores", axes=1) for name in ("objects_conf", "attrs_conf"))
        if objects.shape != attributes.shape:
            raise DataError(f"it holds scores of {len(objects)} objects and of {len(attributes)} attributes")
        scores = (2 * objects + attributes) / 3
    if len(scores) < count or not np.isfinite(scores).all():
        raise DataError(f"it holds {count} regions, and {len(scores)} scores or scores that aren't finite")
    return scores[:count]


def _kept(scores: Array | None, count: int, choice: RegionChoice) -> Array:
    """The rows of the kept regions."""
    if scores is None:
        return np.arange(min(count, choice.most))
    wanted = min(max(int((scores > choice.threshold).sum()), choice.least), choice.most)
    return np.argsort(-scores, kind="stable")[:wanted]


def _numbers(arrays: dict[str, Array], names: Sequence[str], what: str, axes: int) -> Array:
    """The first array there is among `names`, in float64."""
    name = next((name for name in names if name in arrays), None)
    if name is None:
        raise DataError(f"it holds no {what} ({' or '.join(names)})")
    array = arrays[name]
    if array.dtype.kind not in "iuf" or array.ndim != axes:
        raise DataError(f"its {name!r} should be numbers on {axes} axes, got {array.dtype} of shape {array.shape}")
    return array.astype(np.float64)


def _whole_number(array: Array, name: str) -> int:
    if array.size != 1 or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise DataError(f"its {name!r} should be one number, got {array.dtype} of shape {array.shape}")
    return int(array.reshape(()))
