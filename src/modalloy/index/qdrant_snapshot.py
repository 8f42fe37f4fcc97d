"""One state of an index in a Qdrant cluster, read by what a `Snapshot` offers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from modalloy.encoders import Modality
from modalloy.index.base import Found
from modalloy.index.checks import check_queries
from modalloy.index.columns import in_order
from modalloy.index.condition import Condition
from modalloy.index.qdrant_config import QdrantConfig
from modalloy.index.qdrant_connection import reaching
from modalloy.index.qdrant_filter import conditions_of, one_of
from modalloy.index.qdrant_points import ADDED, REMOVED, rows_of, selection
from modalloy.index.qdrant_state import State
from modalloy.index.schema import MetaKind, rows_schema

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

PAGE = 256
"""Rows that are asked for or sent at a time: with vectors, a few megabytes."""


class QdrantSnapshot:
    """See `Snapshot`. Safe to read while the index is written to, until `QdrantIndex.optimize` drops its rows.

    Args:
        client: of the cluster.
        location: for messages.
        rows: the collection that holds the rows.
        state: which of them count.
        config: how they are asked.
    """

    def __init__(self, client: "QdrantClient", location: str, rows: str, state: State, config: QdrantConfig) -> None:
        self.head = state.head
        # The versions of a generation begin at 0 again.
        self.version = state.head.generation << 32 | state.version
        self._client, self._location, self._rows, self._state, self._config = client, location, rows, state, config

    @property
    def metadata(self) -> Mapping[str, MetaKind]:
        """The users' fields and their kinds."""
        return self._state.metadata

    def search(
        self,
        modality: Modality,
        queries: Float[Tensor, "queries dim"],
        k: int,
        where: Sequence[Condition] = (),
        exact: bool = False,
    ) -> list[Found]:
        """See `Snapshot`."""
        from qdrant_client import models

        queries = check_queries(queries, k, self.head)
        within = self._filter(where)
        rescored = models.QuantizationSearchParams(rescore=True, oversampling=self._config.oversampling, ignore=exact)
        how = models.SearchParams(hnsw_ef=max(self._config.candidates, k), exact=exact, quantization=rescored)
        requests = [
            models.QueryRequest(
                query=query, using=modality, filter=within, params=how, limit=k, with_payload=["id"], with_vector=False
            )
            for query in queries.tolist()
        ]
        with reaching(self._location):
            answers = self._client.query_batch_points(self._rows, requests) if requests else []
        return [
            Found([(point.payload or {})["id"] for point in answer.points], [point.score for point in answer.points])
            for answer in answers
        ]

    def read_ahead(self) -> None:
        """See `Snapshot`. Nothing is to be done: a cluster holds in memory what it wants to."""

    def rows(self, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """See `Snapshot`."""
        wanted = list(dict.fromkeys(["id", *columns]))
        batches = [
            batch
            for some in in_parts(list(dict.fromkeys(ids)))
            for batch in self._batches(wanted, self._filter((), one_of("id", some)))
        ]
        found = pa.Table.from_batches(batches, pa.schema([self._schema.field(column) for column in wanted]))
        return in_order(found, ids, columns)

    def scan(
        self,
        columns: Sequence[str],
        where: Sequence[Condition] = (),
        limit: int | None = None,
        offset: int = 0,
    ) -> Iterator[pa.RecordBatch]:
        """See `Snapshot`. The rows before `offset` are read too, without their columns."""
        yield from self._batches(list(columns), self._filter(where), limit, offset)

    def count(self, where: Sequence[Condition] = ()) -> int:
        """See `Snapshot`."""
        with reaching(self._location):
            return self._client.count(self._rows, count_filter=self._filter(where), exact=True).count

    @property
    def _schema(self) -> pa.Schema:
        return rows_schema(self.head.dim, self.metadata)

    def _filter(self, where: Sequence[Condition], *further: "models.Condition") -> "models.Filter":
        from qdrant_client import models

        must: list[Any] = [there(self._state), *conditions_of(where, self.metadata), *further]
        return models.Filter(must=must)

    def _batches(
        self, columns: Sequence[str], within: "models.Filter", limit: int | None = None, offset: int = 0
    ) -> Iterator[pa.RecordBatch]:
        place = self._place_of(offset, within) if offset else None
        if offset and place is None:
            return
        remaining = limit
        while remaining is None or remaining > 0:
            page = PAGE if remaining is None else min(PAGE, remaining)
            with reaching(self._location):
                records, place = self._client.scroll(
                    self._rows, scroll_filter=within, limit=page, offset=place, **selection(columns)
                )
            if records:
                yield rows_of(records, columns, self.head.dim, self.metadata)
            if place is None:
                return
            remaining = None if remaining is None else remaining - len(records)

    def _place_of(self, offset: int, within: "models.Filter") -> Any:
        """The point that stands at a place of the order of all points that satisfy a filter; None beyond the last."""
        place = None
        while offset > 0:
            page = min(offset, 16 * PAGE)
            with reaching(self._location):
                _, place = self._client.scroll(
                    self._rows, scroll_filter=within, limit=page, offset=place, with_payload=False, with_vectors=False
                )
            if place is None:
                return None
            offset -= page
        return place


def in_parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Ids, a page at a time."""
    for start in range(0, len(ids), PAGE):
        yield ids[start : start + PAGE]


def there(state: State) -> "models.Filter":
    """The rows that are there in a state."""
    from qdrant_client import models

    added = models.FieldCondition(key=ADDED, range=models.Range(lte=state.version))
    removed = models.FieldCondition(key=REMOVED, range=models.Range(gt=state.version))
    if not state.aborted:
        return models.Filter(must=[added, removed])
    return models.Filter(
        must=[added, models.Filter(should=[removed, one_of(REMOVED, state.aborted)])],
        must_not=[one_of(ADDED, state.aborted)],
    )
