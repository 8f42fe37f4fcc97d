"""Reads Flickr8k, Flickr30k and COCO with the splits that A. Karpathy published (dataset_coco.json, ...).

Source: A. Karpathy, L. Fei-Fei, "Deep visual-semantic alignments for generating image descriptions" (2015).
"""

import sys
from pathlib import Path
from typing import Any

from modalloy.data.build import Record
from modalloy.data.json_kind import json_kind
from modalloy.data.readers.benchmarks import KARPATHY_IMAGES, check_benchmark
from modalloy.data.readers.collection import Collection, image_folder, parse_json, read_text
from modalloy.errors import DataError


def read_karpathy(path: str | Path, images: str | Path | None = None) -> Collection:
    """Reads a Karpathy JSON file; an item's id is its file name without suffix, `restval` counts as train.

    Args:
        path: the JSON file.
        images: the folder with the images, flat or with COCO's subfolders (`val2014`); default: `images`
            beside the file, else the file's folder.

    Raises:
        DataError: the file isn't of this form (the entry is named), or a part of a named benchmark (by its
            "dataset", else by the file's name) has another number of images than published.
    """
    path = Path(path)
    beside = path.parent / "images"
    root = image_folder(images, beside if beside.is_dir() else path.parent)
    value = parse_json(read_text(path), str(path))
    entries = value.get("images") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{path} isn't Karpathy's JSON: it should hold a list under 'images'.")
    records = tuple(_record(entry, f"{path}: images[{row}]", root) for row, entry in enumerate(entries))
    return Collection(root, records, _expected(value.get("dataset") or path.stem, records, path))


def _record(entry: Any, where: str, root: Path) -> Record:
    if not isinstance(entry, dict):
        raise DataError(f"{where} isn't Karpathy's JSON: it should be an object, got {json_kind(entry)}.")
    name, split = _text(entry, "filename", where), _text(entry, "split", where)
    sentences = entry.get("sentences")
    if not isinstance(sentences, list) or not all(isinstance(sentence, dict) for sentence in sentences):
        raise DataError(f"{where} isn't Karpathy's JSON: 'sentences' should be a list of objects.")
    captions = tuple(_text(sentence, "raw", f"{where}.sentences[{row}]") for row, sentence in enumerate(sentences))
    folder = entry.get("filepath")
    inside = f"{folder}/{name}" if isinstance(folder, str) and folder else name
    found = inside if inside == name or (root / inside).is_file() else name
    return Record(Path(name).stem, found, sys.intern(split), captions)


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    if key not in entry:
        raise DataError(f"{where} isn't Karpathy's JSON: there is no '{key}'.")
    if not isinstance(entry[key], str):
        raise DataError(f"{where}: '{key}' must be a text, got {json_kind(entry[key])}.")
    return entry[key]


def _expected(dataset: object, records: tuple[Record, ...], path: Path) -> dict[str, int]:
    """What the test part must hold, if there is one and the file claims to be a benchmark."""
    benchmark = next((name for name in KARPATHY_IMAGES if name in str(dataset).lower()), None)
    if benchmark is None:
        return {}
    return check_benchmark(benchmark, records, path, "give the file another 'dataset' name")
