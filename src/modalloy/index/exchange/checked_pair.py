"""Rows that other tools wrote as pairs that can be in an index: ids and paths are checked, and no file is opened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modalloy.data.item import SPLITS, caption_problem, check_id, is_path
from modalloy.data.readers.collection import id_of_path
from modalloy.data.readers.extra_columns import ExtraColumns
from modalloy.errors import DataError
from modalloy.index.base import Source
from modalloy.index.exchange.pairs import CAPTION, IMAGE_PATH, NUMBER, OWN
from modalloy.index.row_checks import is_thumbnail
from modalloy.index.schema import META


@dataclass(slots=True)
class Pair:
    """A picture with one of its captions, checked."""

    columns: dict[str, Any]
    """Of the picture."""
    caption: str | None
    """None where there is none that can be used."""
    own: bool = False
    """Whether modalloy exported it."""
    number: int | None = None
    """Of the caption among its picture's, if modalloy exported it."""
    problem: str | None = None
    """Why it can't be used."""


def own_pair(row: Mapping[str, Any], sources: Sequence[Source]) -> Pair:
    """The pair of a row that modalloy exported.

    Args:
        row: by column.
        sources: of the index that it was exported from.
    """
    columns = {name: row.get(name) for name in (*OWN, *(each for each in row if each.startswith(META)))}
    number = row.get(NUMBER)
    if columns["source"] not in {source.name for source in sources}:
        return Pair(columns, None, problem="its source isn't one of the index's")
    return _checked(Pair(columns, None if number is None else row.get(CAPTION), True, number))


def peer_pair(row: Mapping[str, Any], source: Source, extra: ExtraColumns) -> Pair:
    """The pair of a row that another tool wrote.

    Args:
        row: by column.
        source: that its picture gets.
        extra: gathers its metadata.
    """
    place, prefix = row.get(IMAGE_PATH), f"{source.name}:" if source.name else ""
    if not isinstance(place, str) or not place:
        return Pair({}, None, problem="it has no image_path")
    root = f"{source.root}/"
    path = place.removeprefix(root)
    metadata = {META + name: value for name, value in extra.of_row(_without_nan(row)).items()}
    if path != place or not is_path(path):
        # What was written stays to be read, and isn't opened.
        metadata.setdefault(f"{META}{IMAGE_PATH}", place)
    columns = {"id": prefix + id_of_path(path), "source": source.name, "path": path, "split": "unused", **metadata}
    return _checked(Pair(columns, row.get(CAPTION)))


def _checked(pair: Pair) -> Pair:
    columns = pair.columns
    try:
        check_id(columns.get("id") or "")
    except DataError:
        pair.problem = "its id can't be one"
        return pair
    if not is_path(columns.get("path")):
        # A name in the source's folder that nothing has.
        columns["path"] = "elsewhere/_" + columns["id"].replace("\\", ":")
    if columns.get("split") not in SPLITS:
        columns["split"] = "unused"
    thumbnail = columns.get("thumbnail")
    if thumbnail is not None and not (isinstance(thumbnail, bytes) and is_thumbnail(thumbnail)):
        columns["thumbnail"] = None
    if not isinstance(pair.caption, str) or caption_problem(pair.caption):
        pair.caption = None
    return pair


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    # pandas has no other null among numbers.
    return {name: value for name, value in row.items() if value == value}
