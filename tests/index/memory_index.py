"""An index in memory, by loops: the reference of real ones, and what searches are tested with."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from modalloy.index import Condition, Found, Head
from modalloy.index.condition import check_condition, column_of
from modalloy.index.schema import VECTOR, metadata_kinds, rows_schema

_HOLDS = {
    "=": lambda got, value: got == value,
    "!=": lambda got, value: got != value,
    "<": lambda got, value: got < value,
    "<=": lambda got, value: got <= value,
    ">": lambda got, value: got > value,
    ">=": lambda got, value: got >= value,
    "in": lambda got, value: got in value,
    "contains": lambda got, value: value.lower() in got.lower(),
}


class MemorySnapshot:
    """Rows as dictionaries, in the order in which they were added."""

    def __init__(self, head: Head, version: int, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
        self.head, self.version, self._rows, self._schema = head, version, list(rows), schema
        self.metadata = metadata_kinds(schema)

    def _where(self, where: Sequence[Condition]) -> list[dict[str, Any]]:
        for each in where:
            check_condition(each, self.metadata)
        return [
            row
            for row in self._rows
            if all(
                (got := row.get(column_of(each.field))) is not None and _HOLDS[each.comparison](got, each.value)
                for each in where
            )
        ]

    def search(self, modality, queries, k, where=(), exact=False) -> list[Found]:
        column = VECTOR[modality]
        vectors = ((row, row.get(column)) for row in self._where(where))
        rows = [row for row, vector in vectors if vector is not None and all(map(math.isfinite, vector))]
        answers = []
        for query in queries.tolist():
            scored = [(sum(a * b for a, b in zip(query, row[column], strict=True)), row["id"]) for row in rows]
            best = sorted(scored, key=lambda pair: -pair[0])[:k]
            answers.append(Found([id for _, id in best], [score for score, _ in best]))
        return answers

    def read_ahead(self) -> None:
        """Everything is in memory."""

    def rows(self, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        by_id = {row["id"]: row for row in self._rows}
        return self._table([by_id[id] for id in ids if id in by_id], columns)

    def scan(self, columns, where=(), limit=None, offset=0) -> Iterator[pa.RecordBatch]:
        rows = self._where(where)[offset:]
        yield from self._table(rows[:limit], columns).to_batches(max_chunksize=7)

    def count(self, where: Sequence[Condition] = ()) -> int:
        return len(self._where(where))

    def _table(self, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pa.Table:
        schema = pa.schema([self._schema.field(column) for column in columns])
        return pa.Table.from_pylist([{column: row.get(column) for column in columns} for row in rows], schema)


class MemoryIndex:
    """A store whose states are copies."""

    location = "memory"

    def __init__(self, head: Head) -> None:
        self._now = MemorySnapshot(head, 0, [], rows_schema(head.dim))

    @property
    def head(self) -> Head:
        return self._now.head

    def snapshot(self) -> MemorySnapshot:
        return self._now

    def commit(self, rows: pa.Table | None = None, removed: Sequence[str] = (), head: Head | None = None) -> None:
        added = [] if rows is None else rows.to_pylist()
        gone = {*removed, *(row["id"] for row in added)}
        kept = [row for row in self._now._rows if row["id"] not in gone]
        kinds = {**self._now.metadata, **({} if rows is None else metadata_kinds(rows.schema))}
        now = head or self._now.head
        self._now = MemorySnapshot(now, self._now.version + 1, kept + added, rows_schema(now.dim, kinds))

    def optimize(self) -> None:
        """Nothing gets slow."""

    def begin(self, head: Head) -> "MemoryIndex":
        return MemoryIndex(head)

    def switch(self) -> None:
        """There is one generation."""
