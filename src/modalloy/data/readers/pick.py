"""Picks the reader for a path by what is found there."""

from collections.abc import Callable
from pathlib import Path

from modalloy.data.build import Reject, build_manifest
from modalloy.data.item import is_item_line
from modalloy.data.manifest import Manifest
from modalloy.data.readers.collection import Collection, read_text
from modalloy.data.readers.folder import read_folder
from modalloy.data.readers.karpathy import read_karpathy
from modalloy.data.readers.table import read_csv, read_jsonl
from modalloy.errors import DataError

_INDEX_FILES = ("manifest.jsonl", "dataset_*.json", "metadata.jsonl", "metadata.csv")


def read_collection(
    path: str | Path, images: str | Path | None = None, *, split: str = "train", decode: bool = False
) -> tuple[Manifest, list[Reject]]:
    """Reads a collection of any known form and checks its files.

    A file is read by its suffix: .json as Karpathy's JSON, .jsonl as a saved manifest (taken as it is) or as
    rows, .csv, .tsv and .txt as a table. In a folder a manifest.jsonl, dataset_*.json, metadata.jsonl or
    metadata.csv is looked for, in this order; without one its images are read, with sidecar captions.

    >>> import tempfile
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (4, 4)).save(folder / "cat.png")
    >>> manifest, rejects = read_collection(folder)
    >>> manifest.image_ids, rejects
    (['cat.png'], [])

    Args:
        path: a file or a folder.
        images: the folder that image paths start from, where it isn't the file's own.
        split: the split of images for which the collection names none.
        decode: whether to decode each image fully instead of its header alone; slower, finds truncated files.

    Raises:
        DataError: the form isn't known, or the collection's structure is at fault.
    """
    path = _index_file(Path(path)) if Path(path).is_dir() else Path(path)
    if path.is_dir():
        if images is not None:
            raise DataError(f"{path} has no file that lists images, so leave out the image folder {images}.")
        collection = read_folder(path, split)
    elif not path.exists():
        raise DataError(f"{path} isn't there; check the path.")
    elif _is_manifest(path):
        return Manifest.load(path, images), []
    else:
        collection = _read_file(path, images, split)
    return build_manifest(collection.records, collection.root, expected=collection.expected, decode=decode)


def _index_file(folder: Path) -> Path:
    """The file in a folder that lists its images, else the folder."""
    for pattern in _INDEX_FILES:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(one.name for one in found)
            raise DataError(f"{folder} holds several collections ({names}); name one.")
        if found:
            return found[0]
    return folder


def _read_file(path: Path, images: str | Path | None, split: str) -> Collection:
    tables: dict[str, Callable[..., Collection]] = {
        ".jsonl": read_jsonl,
        ".ndjson": read_jsonl,
        ".csv": read_csv,
        ".tsv": read_csv,
        ".txt": read_csv,
    }
    suffix = path.suffix.lower()
    if suffix == ".json":
        return read_karpathy(path, images)
    if suffix not in tables:
        known = ", ".join([".json", *tables])
        raise DataError(f"{path} isn't a known collection: it should be a folder or end in {known}.")
    return tables[suffix](path, images, split)


def _is_manifest(path: Path) -> bool:
    """Whether one of the first two lines is an item's (the first may name the root)."""
    if path.suffix.lower() != ".jsonl":
        return False
    first_lines = read_text(path).split("\n", 2)[:2]
    return any(is_item_line(line) for line in first_lines)
