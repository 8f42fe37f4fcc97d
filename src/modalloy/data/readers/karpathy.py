"""Reads Flickr8k, Flickr30k and COCO with the splits that A. Karpathy published (dataset_coco.json, ...).

Source: A. Karpathy, L. Fei-Fei, "Deep visual-semantic alignments for generating image descriptions" (2015).
"""

from pathlib import Path
from typing import Any

from modalloy.data.build import SPLIT_ALIASES, Record
from modalloy.data.readers.collection import Collection, image_folder, parse_json, read_text
from modalloy.errors import DataError

TEST_IMAGES = {"flickr30k": 1000, "coco": 5000}
"""The size of each published test part that figures are compared on."""


def read_karpathy(path: str | Path, images: str | Path | None = None) -> Collection:
    """Reads a Karpathy JSON file; an item's id is its file name without suffix, `restval` counts as train.

    Args:
        path: the JSON file.
        images: the folder with the images, flat or with COCO's subfolders (`val2014`); default: `images`
            beside the file, else the file's folder.

    Raises:
        DataError: the file isn't of this form (the entry is named), or its test part isn't the published one.
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
    try:
        name, split = entry["filename"], entry["split"]
        captions = tuple(sentence["raw"] for sentence in entry["sentences"])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{where} isn't Karpathy's JSON ({error!r}); it needs filename, split and sentences[].raw."
        ) from None
    if not all(isinstance(text, str) for text in (name, split, *captions)):
        raise DataError(f"{where}: filename, split and each caption must be texts.")
    folder = entry.get("filepath")
    inside = f"{folder}/{name}" if isinstance(folder, str) and folder else name
    found = inside if inside == name or (root / inside).is_file() else name
    return Record(Path(name).stem, found, split, captions)


def _expected(dataset: object, records: tuple[Record, ...], path: Path) -> dict[str, int]:
    """What the test part must hold, if there is one and it claims to be a published one."""
    found = sum(SPLIT_ALIASES.get(record.split.strip().lower()) == "test" for record in records)
    wanted = next((size for name, size in TEST_IMAGES.items() if name in str(dataset).lower()), None)
    if wanted is None or not found:
        return {}
    if found != wanted:
        raise DataError(
            f"{path}: the Karpathy test part of {dataset} has {wanted:,} images, this file has {found:,}; "
            "use the published file, or give the file another 'dataset' name if it is another split."
        )
    return {"test": wanted}
