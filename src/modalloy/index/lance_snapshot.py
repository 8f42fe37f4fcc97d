"""One version of a LanceDB table, read by what a `Snapshot` offers."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from modalloy.encoders import Modality
from modalloy.encoders.base import MODALITIES
from modalloy.index.ann import EXACT_UP_TO, ApproximateConfig
from modalloy.index.base import Found, Head
from modalloy.index.cached_rows import ROW_ID, CachedRows, is_cached
from modalloy.index.cached_vectors import CachedVectors, can_be_held
from modalloy.index.checks import check_queries
from modalloy.index.columns import in_order, vectors_in
from modalloy.index.condition import Condition, check_condition
from modalloy.index.exact import best_of_blocks
from modalloy.index.lance_errors import guarded, storage_errors
from modalloy.index.lance_sql import sql_of, sql_of_ids
from modalloy.index.schema import VECTOR, MetaKind, metadata_kinds

if TYPE_CHECKING:
    from lancedb.table import LanceTable, Table

_BLOCK = 8192
_MOST_RECENT = 2_000


class LanceSnapshot:
    """See `Snapshot`.

    Small collections are compared one by one in memory. Larger ones are searched there too once they are read ahead,
    if they fit; else by the graph on the disk, but for the few rows that a condition leaves, which are all compared.

    Args:
        location: of the index, for messages.
        head: what the index says of itself.
        version: of this state.
        table: a handle of its own, checked out at that version.
        approximate: how larger ones are searched.
        exact_up_to: what counts as small.
    """

    def __init__(
        self,
        location: str,
        head: Head,
        version: int,
        table: "Table",
        approximate: ApproximateConfig,
        exact_up_to: int = EXACT_UP_TO,
    ) -> None:
        self.location, self.head, self.version = location, head, version
        self._table, self._approximate, self._exact_up_to = table, approximate, exact_up_to
        self._reading = {modality: threading.Lock() for modality in MODALITIES}
        self._vectors_in_memory: dict[Modality, CachedVectors] = {}
        self._reading_ahead = threading.Lock()
        self._ahead = False
        self._rows_in_memory: CachedRows | None = None
        self._recent: dict[str, int] = {}

    @cached_property
    @guarded
    def metadata(self) -> Mapping[str, MetaKind]:
        """The users' fields and their kinds."""
        return metadata_kinds(self._schema)

    @guarded
    def search(
        self,
        modality: Modality,
        queries: Float[Tensor, "queries dim"],
        k: int,
        where: Sequence[Condition] = (),
        exact: bool = False,
    ) -> list[Found]:
        """See `Snapshot`."""
        queries = check_queries(queries, k, self.head)
        conditions = [check_condition(condition, self.metadata) for condition in where]
        everything, kind = self._sizes[modality], Condition("modality", "=", modality)
        if (cached := self._cached_vectors(modality)) is not None:
            return cached.search(queries, k, self._matching([kind, *conditions]) if conditions else None, exact)
        within = self._where(modality, conditions)
        matching = self._table.count_rows(sql_of([kind, *conditions])) if conditions else everything
        if exact or matching <= self._exact_up_to or not self._indexed(modality):
            return best_of_blocks(queries, self._vectors(modality, within), k)
        found = [self._search_index(modality, query, k, sql_of(conditions)) for query in queries]
        if any(len(each.ids) < min(k, matching) for each in found):
            # A graph can lose its way among rows that a condition excludes.
            return best_of_blocks(queries, self._vectors(modality, within), k)
        return found

    @guarded
    def rows(self, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """See `Snapshot`."""
        cached = self._rows_in_memory
        if cached is not None and all(map(is_cached, columns)):
            return cached.take(ids, columns)
        wanted = list(dict.fromkeys(["id", *columns]))
        # By row ids it takes half the time of a look-up.
        row_ids = self._known_row_ids(ids) if cached is None else cached.row_ids(ids)
        others = [id for id in ids if id not in row_ids] if cached is None else []
        batches = self._batches(wanted, sql_of_ids(others)) if others else ()
        found = [pa.Table.from_batches(batches, pa.schema([self._schema.field(column) for column in wanted]))]
        if row_ids:
            found.append(self._table.take_row_ids(list(row_ids.values())).select(wanted).to_arrow().select(wanted))
            found[-1].validate(full=True)
        return in_order(pa.concat_tables(found), ids, columns)

    @guarded
    def read_ahead(self) -> None:
        """See `Snapshot`. What fits into memory is held there: what is known of rows besides their vectors is read now,
        the vectors of pictures, or of captions, by the first search for them."""
        with self._reading_ahead:
            if self._rows_in_memory is None:
                columns = [column for column in self._schema.names if is_cached(column)]
                schema = pa.schema([*map(self._schema.field, columns), pa.field(ROW_ID, pa.uint64())])
                batches = (batch.select(schema.names) for batch in self._batches(columns, None, row_ids=True))
                self._rows_in_memory = CachedRows.read(self._table.count_rows(), batches, schema)
            self._ahead = True

    def scan(
        self,
        columns: Sequence[str],
        where: Sequence[Condition] = (),
        limit: int | None = None,
        offset: int = 0,
    ) -> Iterator[pa.RecordBatch]:
        """See `Snapshot`."""
        conditions = [check_condition(condition, self.metadata) for condition in where]
        yield from self._batches(columns, sql_of(conditions), limit, offset)

    @guarded
    def count(self, where: Sequence[Condition] = ()) -> int:
        """See `Snapshot`."""
        return int(self._table.count_rows(sql_of([check_condition(each, self.metadata) for each in where])))

    @cached_property
    def _schema(self) -> pa.Schema:
        # LanceDB asks the database for it each time.
        return self._table.schema

    @cached_property
    def _sizes(self) -> dict[Modality, int]:
        # By what kind of row it is, since whether it has a vector isn't told without reading all vectors.
        return {modality: self.count([Condition("modality", "=", modality)]) for modality in MODALITIES}

    def _known_row_ids(self, ids: Sequence[str]) -> dict[str, int]:
        """LanceDB's numbers of those whose vectors are in memory, or that a search has just found."""
        recent = self._recent
        known = {id: recent[id] for id in ids if id in recent}
        for cached in tuple(self._vectors_in_memory.values()):
            known |= cached.row_ids(ids)
        return known

    def _cached_vectors(self, modality: Modality) -> CachedVectors | None:
        """All vectors in memory, read once; None for many that nobody asked to be read ahead, or too many."""
        count, dim = self._sizes[modality], self.head.dim
        if count > self._exact_up_to and not (self._ahead and can_be_held(count, dim)):
            return None
        if modality not in self._vectors_in_memory:
            # The other modality's may be read meanwhile.
            with self._reading[modality]:
                if modality not in self._vectors_in_memory:
                    self._vectors_in_memory[modality] = self._read_vectors(modality)
        return self._vectors_in_memory[modality]

    def _read_vectors(self, modality: Modality) -> CachedVectors:
        column, ids, row_ids = VECTOR[modality], list[str](), [np.empty(0, np.uint64)]
        blocks = [torch.empty(0, self.head.dim)]
        for batch in self._batches(["id", column], self._where(modality, []), row_ids=True):
            ids += batch["id"].to_pylist()
            row_ids.append(batch[ROW_ID].to_numpy())
            blocks.append(vectors_in(batch, column))
        return CachedVectors(ids, np.concatenate(row_ids), blocks, self._exact_up_to)

    def _matching(self, conditions: Sequence[Condition]) -> np.ndarray:
        """LanceDB's numbers of the rows that satisfy conditions."""
        batches = self._batches(["modality"], sql_of(conditions), row_ids=True)
        return np.concatenate([np.empty(0, np.uint64), *(batch[ROW_ID].to_numpy() for batch in batches)])

    def _search_index(self, modality: Modality, query: Float[Tensor, "dim"], k: int, conditions: str | None) -> Found:
        from lancedb.background_loop import LOOP

        cached, how = self._rows_in_memory, self._approximate
        # By way of the asynchronous table: the synchronous one asks the database five times for each search.
        search = (
            cast("LanceTable", self._table)
            ._table.vector_search(query.numpy())
            .column(VECTOR[modality])
            .distance_type("dot")
            .nprobes(how.partitions(self._sizes[modality]))
            .ef(how.candidates(k))
            .refine_factor(how.refine)
            .limit(k)
            # A row's own number costs nothing, unlike its id.
            .select(["_distance", *(["id"] if cached is None else [])])
            .with_row_id()
        )
        found = LOOP.run((search if conditions is None else search.where(conditions)).to_arrow())
        row_ids = found[ROW_ID].to_pylist()
        if cached is None:
            ids = found["id"].to_pylist()
            # A new one where it gets too large, since others may be reading the old one.
            recent = self._recent if len(self._recent) < _MOST_RECENT else {}
            self._recent = recent | dict(zip(ids, row_ids, strict=True))
        else:
            ids = cached.ids(row_ids)
        # LanceDB's distance is 1 - <query, vector>.
        return Found(ids, [1.0 - distance for distance in found["_distance"].to_pylist()])

    def _indexed(self, modality: Modality) -> bool:
        return any(VECTOR[modality] in each.columns for each in self._indices)

    @cached_property
    def _indices(self) -> list[Any]:
        return list(self._table.list_indices())

    def _where(self, modality: Modality, conditions: Sequence[Condition]) -> str:
        present = f"`{VECTOR[modality]}` IS NOT NULL"
        given = sql_of(conditions)
        return present if given is None else f"{present} AND {given}"

    def _vectors(self, modality: Modality, where: str) -> Iterator[tuple[list[str], Float[Tensor, "items dim"]]]:
        for batch in self._batches(["id", VECTOR[modality]], where):
            yield batch["id"].to_pylist(), vectors_in(batch, VECTOR[modality])

    def _batches(
        self,
        columns: Sequence[str],
        where: str | None,
        limit: int | None = None,
        offset: int = 0,
        row_ids: bool = False,
    ) -> Iterator[pa.RecordBatch]:
        if limit == 0:  # which LanceDB takes for no limit
            return
        with storage_errors(self.location):
            query = self._table.search().select(list(columns)).with_row_id(row_ids)
            if where is not None:
                query = query.where(where)
            if limit is not None:
                query = query.limit(limit)
            if offset:
                query = query.offset(offset)
            for batch in query.to_batches(_BLOCK):
                # LanceDB has no checksums: of damaged texts and lists this is all that tells.
                batch.validate(full=True)
                yield batch
