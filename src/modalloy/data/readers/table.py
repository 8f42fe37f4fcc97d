"""Reads collections kept as rows: JSON lines or CSV, an image or one of its captions a row."""

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from modalloy.data.build import Record
from modalloy.data.images import SUFFIXES
from modalloy.data.json_kind import json_kind
from modalloy.data.metadata import NO_METADATA, MetaValue
from modalloy.data.readers.collection import (
    Collection,
    id_of_path,
    image_folder,
    numbered_captions,
    parse_json,
    text_lines,
)
from modalloy.data.readers.extra_columns import ExtraColumns, read_numbers
from modalloy.errors import DataError

PATH_KEYS = ("path", "file_name", "filename", "filepath", "image_path", "image", "image_name")
CAPTION_KEYS = ("caption", "text", "comment", "sentence")
_ALIKE = 0.8  # Tells "capton" and "txt" from "option" and "test".
_OTHER_KEYS = ("id", "split", "family")
_KNOWN = (*PATH_KEYS, "captions", *CAPTION_KEYS, *_OTHER_KEYS)
_DELIMITERS = (",", "\t", ";", "|")


def read_jsonl(path: str | Path, images: str | Path | None = None, split: str = "train") -> Collection:
    """Reads JSON lines such as {"path": "cat.jpg", "captions": ["A cat."], "split": "val", "id": "cat"}.

    The path may be called any of `PATH_KEYS`; instead of a list under "captions" there may be one caption
    under any of `CAPTION_KEYS`, or several under "caption_0", "caption_1", ..., and further lines with the same path
    then add further captions. "id", "split"
    and "family" may be left out; an id is then the path with ":" for "/". Other keys are the picture's metadata, where
    their values are texts, numbers, true or false.

    Args:
        path: the file.
        images: the folder that the paths start from; default: the file's folder.
        split: the split of rows that name none.

    Raises:
        DataError: a line can't be used (named FILE:LINE), or a misspelt key seems to hold all captions.
    """
    path = Path(path)
    root = image_folder(images, path.parent)
    extra = ExtraColumns(_KNOWN)
    return Collection(root, _records(_grouped(path, _jsonl_rows(path, extra), extra), split))


def read_csv(path: str | Path, images: str | Path | None = None, split: str = "train") -> Collection:
    """Reads a table with a header, its columns separated by comma, tab, semicolon or "|".

    It has a column of paths (any of `PATH_KEYS`), usually one of captions (any of `CAPTION_KEYS`), and may
    have `id`, `split` and `family`; each row gives one caption, and rows with the same path make one item. Other
    columns are metadata: numbers where a whole column is, else texts.

    Args:
        path: the file.
        images: the folder that the paths start from; default: the file's folder.
        split: the split of rows that name none.

    Raises:
        DataError: there is no column of paths, that of captions seems misspelt, or a row can't be used (named
            FILE:LINE).
    """
    path = Path(path)
    root = image_folder(images, path.parent)
    extra = ExtraColumns(_KNOWN)
    groups = _grouped(path, _csv_rows(path, extra), extra)
    read_numbers(group.first.metadata for group in groups.values())
    return Collection(root, _records(groups, split))


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    path: str
    id: str | None
    split: str | None
    family: str | None
    captions: tuple[str, ...]
    whole: bool
    """Whether the row stands for the whole image, rather than for one of its captions."""
    metadata: dict[str, MetaValue]


@dataclass(slots=True)
class _Group:
    first: _Row
    captions: list[str] = field(default_factory=list)


def _grouped(path: Path, rows: Iterable[_Row], extra: ExtraColumns) -> dict[str, _Group]:
    """The rows of each image, by its id, in the order of first rows."""
    groups: dict[str, _Group] = {}
    for row in rows:
        id = row.id if row.id is not None else id_of_path(row.path)
        group = groups.setdefault(id, _Group(row))
        first = group.first
        if first is not row:
            if row.whole or first.whole or first.path != row.path:
                raise DataError(
                    f"{path}:{row.line}: the id {id!r} stands at {path}:{first.line} already; ids must be unique."
                )
            if (first.split, first.family) != (row.split, row.family):
                raise DataError(f"{path}:{row.line}: {id!r} has another split or family than at {path}:{first.line}.")
            extra.join(first.metadata, row.metadata)
        group.captions += row.captions
    extra.finish((group.first.metadata for group in groups.values()), path)
    return groups


def _records(groups: Mapping[str, _Group], split: str) -> tuple[Record, ...]:
    return tuple(
        Record(
            id,
            group.first.path,
            group.first.split or split,
            tuple(group.captions),
            group.first.family,
            group.first.metadata or NO_METADATA,
        )
        for id, group in groups.items()
    )


def _row(value: Mapping[str, Any], file: Path, line: int, extra: ExtraColumns) -> _Row:
    where = f"{file}:{line}"
    path = _text(value, PATH_KEYS, where)
    if path is None:
        raise DataError(f"{where}: no image path; it should stand under one of {', '.join(PATH_KEYS)}.")
    captions, whole = value.get("captions"), value.get("captions") is not None
    if captions is None:
        given = [_text(value, keys, where) for keys in (CAPTION_KEYS, *((name,) for name in numbered_captions(value)))]
        captions = [caption for caption in given if caption is not None]
    if not isinstance(captions, list):
        raise DataError(f"{where}: captions must be a list of texts, got {json_kind(captions)}.")
    for caption in captions:
        if not isinstance(caption, str):
            raise DataError(f"{where}: captions must be a list of texts, got a list with {json_kind(caption)}.")
    id, split, family = (_text(value, (key,), where) or None for key in _OTHER_KEYS)
    return _Row(line, path, id, split and sys.intern(split), family, tuple(captions), whole, extra.of_row(value))


def _text(value: Mapping[str, Any], keys: Iterable[str], where: str) -> str | None:
    """The text under the first of `keys` that there is."""
    for key in keys:
        found = value.get(key)
        if isinstance(found, int) and not isinstance(found, bool):
            return str(found)
        if found is not None and not isinstance(found, str):
            raise DataError(f"{where}: {key} must be a text, got {json_kind(found)}.")
        if found is not None:
            return found
    return None


def _refuse_misspelt(names: Iterable[str], known: Sequence[str], where: str) -> None:
    """Refuses a table without captions in which another column looks as if it were meant to hold them."""
    names = list(names)
    if not numbered_captions(names) and not set(names) & set(known):
        for name in names:
            if name not in (*PATH_KEYS, *_OTHER_KEYS):
                meant = get_close_matches(name.strip().lower(), known, n=1, cutoff=_ALIKE)
                if meant or "caption" in name.lower():
                    raise DataError(
                        f"{where}: no column of captions; did you mean {name!r} to be {(meant or ['caption'])[0]!r}? "
                        f"Known names: {', '.join(known)}, caption_0, caption_1, ..."
                    )


def _jsonl_rows(path: Path, extra: ExtraColumns) -> Iterator[_Row]:
    names: dict[str, None] = {}
    for number, line in enumerate(text_lines(path), start=1):
        if line.strip():
            value = parse_json(line, f"{path}:{number}")
            if not isinstance(value, dict):
                raise DataError(f"{path}:{number}: a line must hold an object, got {json_kind(value)}.")
            names.update(dict.fromkeys(value))
            yield _row(value, path, number, extra)
    _refuse_misspelt(names, ("captions", *CAPTION_KEYS), str(path))


def _csv_rows(path: Path, extra: ExtraColumns) -> Iterator[_Row]:
    header = next(text_lines(path), "")
    if not header.strip() and not any(line.strip() for line in text_lines(path)):
        raise DataError(f"{path} is empty; its first line should name the columns, such as path,caption.")
    for delimiter in _DELIMITERS:
        columns = [column.strip().lower() for column in next(csv.reader([header], delimiter=delimiter), [])]
        if set(columns) & set(PATH_KEYS):
            break
    else:
        raise DataError(f"{path}:1: no column of image paths; call it one of {', '.join(PATH_KEYS)}.")
    known = {*PATH_KEYS, *_OTHER_KEYS, *CAPTION_KEYS, *numbered_captions(columns)}
    if (twice := next((name for name in columns if name in known and columns.count(name) > 1), None)) is not None:
        raise DataError(f"{path}:1: there are two columns called {twice!r}; give each caption a row of its own.")
    _refuse_misspelt(columns, CAPTION_KEYS, f"{path}:1")
    path_column = columns.index(next(name for name in PATH_KEYS if name in columns))
    rows = csv.reader((f"{line}\n" for line in text_lines(path)), delimiter=delimiter)
    try:
        next(rows)
        for row in rows:
            if any(cell.strip() for cell in row):
                if len(row) > len(columns):
                    raise DataError(
                        f"{path}:{rows.line_num}: {len(row)} values for {len(columns)} columns; put quotes around a "
                        f"caption that holds {delimiter!r}."
                    )
                if _swallows_rows(row, path_column, delimiter):
                    raise DataError(
                        f"{path}:{rows.line_num}: a quote that an earlier line opens takes in the rows up to here; "
                        'write each quote of a caption twice (""), and put the whole caption into quotes.'
                    )
                # A row that ends early lacks its caption: only that caption is lost.
                cells = [cell.strip() for cell in row] + [""] * (len(columns) - len(row))
                yield _row(dict(zip(columns, cells, strict=True)), path, rows.line_num, extra)
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}: not CSV ({error}).") from None


def _swallows_rows(row: Sequence[str], path_column: int, delimiter: str) -> bool:
    """Whether a value of several lines holds what must be rows: lines with a picture in the column of paths."""
    lines = (line.split(delimiter) for value in row if "\n" in value for line in value.split("\n")[1:])
    return any(len(cells) > path_column and cells[path_column].strip().lower().endswith(SUFFIXES) for cells in lines)
