"""What an index knows of its rows besides their vectors, held in memory: a look-up would take longer than a search.

LanceDB takes 4 to 8 ms for the rows of twenty answers, this a tenth of one.
"""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from modalloy.index.schema import COLUMNS, META

MOST_BYTES = 2**28
"""What a cache may take at most; it is enough for some 380,000 rows with a short caption each."""
ROW_ID = "_rowid"
"""LanceDB's column of the numbers by which it finds rows at once; they hold for one state of an index."""
_BYTES_A_ROW = 500


def is_cached(column: str) -> bool:
    """Whether a column is held: those of vectors and thumbnails are too large.

    >>> is_cached("captions"), is_cached("meta_camera"), is_cached("thumbnail"), is_cached("image_vector")
    (True, True, False, False)
    """
    return column != "thumbnail" and (column in COLUMNS or column.startswith(META))


class CachedRows:
    """The rows of one state of an index.

    Args:
        rows: their cached columns, and `ROW_ID`.

    >>> rows = CachedRows(pa.table({"id": ["a", "b"], "width": [4, 5], "_rowid": [9, 7]}))
    >>> rows.ids([7, 9]), rows.row_ids(["b", "c"]), rows.take(["b", "c", "a"], ["width"])["width"].to_pylist()
    (['b', 'a'], {'b': 7}, [5, 4])
    """

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows.drop_columns(ROW_ID).combine_chunks()
        self._ids: list[str] = rows["id"].to_pylist()
        self._row_ids: list[int] = rows[ROW_ID].to_pylist()
        self._positions = {id: position for position, id in enumerate(self._ids)}
        self._positions_by_row_id = {row_id: position for position, row_id in enumerate(self._row_ids)}

    @classmethod
    def read(cls, count: int, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> "CachedRows | None":
        """Reads rows into memory; None where they would take more than `MOST_BYTES`.

        Args:
            count: of rows.
            batches: the rows, only read if so many can be held.
            schema: of the batches.
        """
        size, kept = count * _BYTES_A_ROW, []
        if size > MOST_BYTES:
            return None
        for batch in batches:
            size += batch.nbytes
            if size > MOST_BYTES:
                return None
            kept.append(batch)
        return cls(pa.Table.from_batches(kept, schema))

    def ids(self, row_ids: Iterable[int]) -> list[str]:
        """The ids of rows."""
        return [self._ids[self._positions_by_row_id[row_id]] for row_id in row_ids]

    def row_ids(self, ids: Iterable[str]) -> dict[str, int]:
        """Of each row; ids that aren't there are left out."""
        return {id: self._row_ids[self._positions[id]] for id in ids if id in self._positions}

    def take(self, ids: Iterable[str], columns: Sequence[str]) -> pa.Table:
        """Some columns of rows in the order of `ids`; ids that aren't there are left out."""
        positions = [self._positions[id] for id in ids if id in self._positions]
        return self._rows.select(list(columns)).take(pa.array(positions, pa.int64()))
