"""Reads the caption lists that BLIP and ALBEF publish: `flickr30k_train.json`, `coco_karpathy_test.json`, ...

Source: J. Li et al., "Align before fuse" (2021) and "BLIP" (2022), https://github.com/salesforce/BLIP.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modalloy.data.build import SPLIT_ALIASES, Record
from modalloy.data.json_kind import json_kind
from modalloy.data.readers.benchmarks import check_benchmark
from modalloy.data.readers.collection import Collection, captions_of, id_of_path, image_folder, parse_json, read_text
from modalloy.errors import DataError

BENCHMARKS = {"flickr8k": "flickr8k", "flickr30k": "flickr30k", "coco_karpathy": "coco", "coco": "coco"}
"""The benchmark that a list's name claims, by that name without the split: COCO's are coco_*.json with ALBEF."""

_START = 4096


def read_caption_lists(
    files: Iterable[str | Path], images: str | Path | None = None, split: str = "train"
) -> Collection:
    """Reads JSON lists of {"image": "a.jpg", "caption": "A cat."} or {..., "caption": ["A cat.", "A pet."]}.

    Rows with the same image make one item. A row may name its "split"; else the end of the file's name does
    (`_train`, `_val`, `_test`), else it is `split`. Other keys, such as "image_id", aren't used. An item's id
    is its path with ":" for "/".

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "mine_test.json"
    >>> _ = file.write_text('[{"image": "a.jpg", "caption": "A cat."}, {"image": "a.jpg", "caption": "A pet."}]')
    >>> read_caption_lists([file]).records
    (Record(id='a.jpg', path='a.jpg', split='test', captions=('A cat.', 'A pet.'), family=None),)

    Args:
        files: one collection's lists, of one folder.
        images: the folder that image paths start from; default: the files' folder, or `images` in it if the
            first picture is there.
        split: the split of rows for which neither they nor the file's name tell.

    Raises:
        DataError: a file isn't such a list, a row can't be used (named FILE: row N, from 1), an image is in two
            splits, or a part of a named benchmark has another number of images than published.
    """
    paths = [Path(file) for file in files]
    groups: dict[str, _Group] = {}
    for file in paths:
        for number, row in enumerate(_rows(file), start=1):
            _add(groups, row, file, number, split)
    records = tuple(
        Record(id_of_path(path), path, group.split, tuple(group.captions)) for path, group in groups.items()
    )
    default = paths[0].parent
    if records and (default / "images" / records[0].path).is_file():
        default /= "images"
    return Collection(image_folder(images, default), records, _expected(paths, records))


def is_caption_list(path: Path) -> bool:
    """Whether a JSON file holds a list, judged by its beginning."""
    try:
        with path.open("rb") as file:
            return file.read(_START).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); check the path.") from None


def list_name(path: Path) -> tuple[str, str | None]:
    """A list's name without the split, and the split: `("coco_karpathy", "test")`."""
    name, _, end = path.stem.rpartition("_")
    split = SPLIT_ALIASES.get(end.lower())
    return (path.stem, None) if split is None else (name, split)


@dataclass(slots=True)
class _Group:
    """What the rows of one image say."""

    split: str
    file: Path
    row: int
    captions: list[str] = field(default_factory=list)


def _rows(file: Path) -> Iterator[Any]:
    rows = parse_json(read_text(file), str(file))
    if not isinstance(rows, list):
        raise DataError(f"{file} isn't a caption list: it should hold a list, got {json_kind(rows)}.")
    # Each row is let go once it has been read.
    rows.reverse()
    while rows:
        yield rows.pop()


def _add(groups: dict[str, _Group], row: Any, file: Path, number: int, default: str) -> None:
    where = f"{file}: row {number}"
    if not isinstance(row, dict):
        raise DataError(f'{where}: it must be an object with "image" and "caption", got {json_kind(row)}.')
    path, split = row.get("image"), row.get("split")
    if not isinstance(path, str) or not path.strip():
        got = "a blank text" if isinstance(path, str) else json_kind(path) if "image" in row else "none"
        raise DataError(f'{where}: "image" must be a picture\'s path, got {got}.')
    if "caption" not in row:
        raise DataError(f'{where}: there is no "caption"; it must be a text or a list of texts.')
    if split is not None and not isinstance(split, str):
        raise DataError(f'{where}: "split" must be a text, got {json_kind(split)}.')
    split = sys.intern(split or list_name(file)[1] or default)
    group = groups.setdefault(path.removeprefix("./"), _Group(split, file, number))
    if group.split != split:
        first = f"{group.file}: row {group.row}"
        raise DataError(f"{where}: {path} is in the split {split!r}, but in {group.split!r} at {first}.")
    group.captions += captions_of(row["caption"], where)


def _expected(files: Iterable[Path], records: tuple[Record, ...]) -> dict[str, int]:
    for file in files:
        name, split = list_name(file)
        if split is not None and name in BENCHMARKS:
            return check_benchmark(BENCHMARKS[name], records, file.with_name(f"{name}_*.json"), "rename the file")
    return {}
