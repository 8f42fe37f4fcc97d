"""What an index knows of its rows besides their vectors, held in memory: a look-up would take longer than a search.

LanceDB takes 4 to 8 ms for the rows of twenty answers, this a tenth of one.
"""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from modalloy.index.schema import COLUMNS, META

CACHED_UP_TO = 200_000
"""So many rows are held in memory, each in some 700 bytes and its captions."""
PLACE = "_rowid"
"""What LanceDB calls the place of a row."""


def is_cached(column: str) -> bool:
    """Whether a column is held: those of vectors and thumbnails are too large.

    >>> is_cached("captions"), is_cached("meta_camera"), is_cached("thumbnail"), is_cached("image_vector")
    (True, True, False, False)
    """
    return column != "thumbnail" and (column in COLUMNS or column.startswith(META))


class CachedRows:
    """The rows of one state of an index.

    Args:
        rows: their cached columns, and `PLACE`, where LanceDB keeps each.

    >>> rows = CachedRows(pa.table({"id": ["a", "b"], "width": [4, 5], "_rowid": [9, 7]}))
    >>> rows.at([7, 9]), rows.places(["b", "c"]), rows.take(["b", "c", "a"], ["width"])["width"].to_pylist()
    (['b', 'a'], [7], [5, 4])
    """

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows.drop_columns(PLACE).combine_chunks()
        self._ids: list[str] = rows["id"].to_pylist()
        self._places: list[int] = rows[PLACE].to_pylist()
        self._numbers = {id: number for number, id in enumerate(self._ids)}
        self._numbers_at = {place: number for number, place in enumerate(self._places)}

    def at(self, places: Iterable[int]) -> list[str]:
        """The ids of the rows that LanceDB keeps at some places."""
        return [self._ids[self._numbers_at[place]] for place in places]

    def places(self, ids: Iterable[str]) -> list[int]:
        """Where LanceDB keeps rows; ids that aren't there are left out."""
        return [self._places[number] for number in self._present(ids)]

    def take(self, ids: Iterable[str], columns: Sequence[str]) -> pa.Table:
        """Some columns of rows in the order of `ids`; ids that aren't there are left out."""
        return self._rows.select(list(columns)).take(pa.array(self._present(ids), pa.int64()))

    def _present(self, ids: Iterable[str]) -> list[int]:
        return [number for id in ids if (number := self._numbers.get(id)) is not None]
