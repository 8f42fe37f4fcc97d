"""The index in a LanceDB database: a folder, or object storage by the same code.

The table `head` has one row, which says what the index is and which generation counts; `items_...` the rows of a
generation.
LanceDB makes each commit to a table a version, all or nothing, and keeps earlier ones for those who read them.
"""

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from modalloy.errors import CheckpointError, ConfigError, one_line
from modalloy.files import sha256_of_text
from modalloy.index.ann import EXACT_UP_TO, ApproximateConfig
from modalloy.index.base import Head
from modalloy.index.checks import fitting_rows, merged_metadata
from modalloy.index.condition import Condition
from modalloy.index.lance_errors import guarded, storage_errors
from modalloy.index.lance_snapshot import LanceSnapshot
from modalloy.index.lance_sql import sql_of, sql_of_ids
from modalloy.index.lance_table import age_kept, is_made, readable
from modalloy.index.lock import is_uri
from modalloy.index.schema import META, VECTOR, metadata_kinds, rows_schema

if TYPE_CHECKING:
    from lancedb import DBConnection
    from lancedb.table import Table

_HEAD = "head"
_HEAD_SCHEMA = pa.schema([("head", pa.string())])
_SQL_TYPES = {"text": "string", "number": "double", "truth": "boolean"}
_KEPT_FOR_READERS = timedelta(hours=1)
# LanceDB keeps what it knows of each version that was ever read until this is full, by default at 1 GiB.
_METADATA_CACHE = 8 * 2**20
# There are as many as generations that nobody has forgotten yet.
_MOST_TABLES = 10_000


class LanceIndex:
    """See `Index`; made by `create` or `open`.

    Args:
        location: an absolute path, or a URI.
        database: what is there.
        head: of the generation to write to.
        approximate: how many pictures, or captions, are searched.
        exact_up_to: so many are compared one by one.
    """

    def __init__(
        self,
        location: str,
        database: "DBConnection",
        head: Head,
        *,
        approximate: ApproximateConfig | None = None,
        exact_up_to: int = EXACT_UP_TO,
    ) -> None:
        self.location = location
        self._database, self._head = database, head
        self._approximate, self._exact_up_to = approximate or ApproximateConfig(), exact_up_to
        self._lock = threading.Lock()
        self._newest: LanceSnapshot | None = None

    @classmethod
    def create(cls, location: str | Path, head: Head, **options: Any) -> Self:
        """Makes an index without rows.

        Args:
            location: a folder, or a URI such as "s3://bucket/index".
            head: what it says of itself.
            options: as the class takes them.

        Raises:
            ConfigError: there is one already.
        """
        location, database = _connect(location)
        with storage_errors(location):
            if is_made(database, _HEAD):
                raise ConfigError(f"{location} is an index already; add to it, or choose another place.")
            index = cls(location, database, head, **options)
            index._create_items()
            # Last, so that what is killed before isn't an index yet.
            index._write_head()
        return index

    @classmethod
    def open(cls, location: str | Path, **options: Any) -> Self:
        """Opens an index.

        Args:
            location: a folder, or a URI such as "s3://bucket/index".
            options: as the class takes them.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        if not is_uri(str(location)) and not Path(location).is_dir():
            raise CheckpointError(
                f"{location} holds no index: there is no such folder; `modalloy index build` makes one."
            )
        location, database = _connect(location)
        with storage_errors(location):
            if not is_made(database, _HEAD):
                raise CheckpointError(f"{location} holds no index; `modalloy index build` makes one.")
        return cls(location, database, _read_head(database, location)[0], **options)

    @property
    def head(self) -> Head:
        """What the generation that this writes to says of itself."""
        return self._head

    @guarded
    def snapshot(self) -> LanceSnapshot:
        """See `Index`. The same object as before if nothing was committed meanwhile."""
        with self._lock:
            head, head_version = _read_head(self._database, self.location)
            if head.generation < self._head.generation:
                head, head_version = self._head, 0
            table = self._open_items(head)
            version = head_version << 32 | table.version
            if self._newest is None or self._newest.version != version:
                table.checkout(table.version)
                self._newest = LanceSnapshot(self.location, head, version, table, self._approximate, self._exact_up_to)
            return self._newest

    @guarded
    def commit(self, rows: pa.Table | None = None, removed: Sequence[str] = (), head: Head | None = None) -> None:
        """See `Index`.

        Raises:
            ConfigError: the head is of another encoder, or another generation was switched to meanwhile.
        """
        begun = self._require_current()
        if head is not None:
            if (head.generation, head.fingerprints, head.dim) != (
                self._head.generation,
                self._head.fingerprints,
                self._head.dim,
            ):
                raise ConfigError("a commit can't change an index's encoder or generation; build the next generation.")
            self._head = head
            if not begun:
                self._write_head()
        table = self._open_items(self._head)
        if rows is not None and len(rows):
            rows = _fitting(rows, table, self._head.dim)
            merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            gone = set(removed) - set(rows["id"].to_pylist())
            if gone:
                merge = merge.when_not_matched_by_source_delete(sql_of_ids(sorted(gone)))
            with readable(table):
                # Rows have either an image's vector or a text's, and "null" leaves the other one as it is: absent.
                merge.execute(rows, on_bad_vectors="null")
        elif removed:
            table.delete(sql_of_ids(removed))

    @guarded
    def optimize(self) -> None:
        """See `Index`. What readers of the last hour may hold stays."""
        from lancedb.index import BTree, HnswSq

        begun = self._require_current()
        table = self._open_items(self._head)
        with readable(table, every_file=True):
            table.optimize(cleanup_older_than=age_kept(table, _KEPT_FOR_READERS))
        indexed = {column for each in table.list_indices() for column in each.columns}
        for modality, column in VECTOR.items():
            # Counting vectors reads them all, so only where there can be enough and they have no graph yet.
            kind = sql_of([Condition("modality", "=", modality)])
            if column in indexed or table.count_rows(kind) <= self._exact_up_to:
                continue
            rows = table.count_rows(f"`{column}` IS NOT NULL")
            if rows > self._exact_up_to:
                partitions = self._approximate.partitions(rows)
                table.create_index(column, config=HnswSq(distance_type="dot", num_partitions=partitions))
        if "id" not in indexed and table.count_rows() > self._exact_up_to:
            table.create_index("id", config=BTree())
        if not begun:
            self._forget_others()

    @guarded
    def begin(self, head: Head) -> Self:
        """The next generation, beside the one that counts, and with what an interrupted attempt at it already holds.

        Args:
            head: of the next generation; its number is given to it.
        """
        generation = _read_head(self._database, self.location)[0].generation + 1
        beside = type(self)(
            self.location,
            self._database,
            replace(head, generation=generation),
            approximate=self._approximate,
            exact_up_to=self._exact_up_to,
        )
        if not is_made(self._database, beside._items):
            beside._create_items()
        return beside

    @guarded
    def switch(self) -> None:
        """Makes the generation that `begin` gave the one that counts, at once.

        Raises:
            ConfigError: it does already, or another generation was switched to meanwhile.
        """
        if not self._is_begun():
            raise ConfigError(f"{self.location}: generation {self._head.generation} counts already, or was overtaken.")
        self._write_head()

    @property
    def _items(self) -> str:
        return _items(self._head)

    def _is_begun(self) -> bool:
        """Whether this writes to a generation that doesn't count yet."""
        return _read_head(self._database, self.location)[0].generation < self._head.generation

    def _require_current(self) -> bool:
        """Refuses to write to a generation that counts no more; gives whether it doesn't count yet."""
        counting = _read_head(self._database, self.location)[0]
        begun = counting.generation < self._head.generation
        if not begun and _items(counting) != self._items:
            raise ConfigError(f"{self.location} has a newer generation by now; open it again.")
        return begun

    def _create_items(self) -> None:
        self._database.create_table(self._items, schema=rows_schema(self._head.dim), mode="overwrite")

    def _write_head(self) -> None:
        row = pa.table({"head": [json.dumps(self._head.to_dict())]}, _HEAD_SCHEMA)
        # One version replaces the other.
        self._database.create_table(_HEAD, row, mode="overwrite")

    def _open_items(self, head: Head) -> "Table":
        return self._database.open_table(_items(head))

    def _forget_others(self) -> None:
        """Drops the tables of other generations, once nobody can be reading them any more."""
        table = self._database.open_table(_HEAD)
        written = max(each["timestamp"] for each in table.list_versions())
        if datetime.now() - written > _KEPT_FOR_READERS:
            for name in _tables(self._database):
                if name not in (_HEAD, self._items):
                    self._database.drop_table(name)
        table.optimize(cleanup_older_than=_KEPT_FOR_READERS)


def _connect(location: str | Path) -> tuple[str, "DBConnection"]:
    """A folder's absolute path, or the URI, and the database there."""
    # Otherwise it warns of each table that isn't there before it is made.
    os.environ.setdefault("LANCEDB_LOG", "error")
    # A search is a chain of short steps, which workers pass to each other: half as many as there are cores answer
    # sooner, and no fewer questions at once.
    os.environ.setdefault("TOKIO_WORKER_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
    import lancedb

    location = str(location) if is_uri(str(location)) else str(Path(location).resolve())
    with storage_errors(location):
        return location, lancedb.connect(location, session=lancedb.Session(metadata_cache_size_bytes=_METADATA_CACHE))


def _tables(database: "DBConnection") -> list[str]:
    return list(database.list_tables(limit=_MOST_TABLES).tables)


def _items(head: Head) -> str:
    """The table of a generation; another encoder's attempt at the same generation has another one."""
    made_by = json.dumps({side: each.digest for side, each in sorted(head.fingerprints.items())})
    return f"items_{head.generation}_{sha256_of_text(made_by)[:12]}"


def _read_head(database: "DBConnection", location: str) -> tuple[Head, int]:
    with storage_errors(location):
        table = database.open_table(_HEAD)
        written = table.to_arrow()["head"].to_pylist()
    try:
        return Head.from_dict(json.loads(written[0]), location), table.version
    except (IndexError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{location} doesn't describe an index ({one_line(error)}); make it anew (modalloy index build)."
        ) from None


def _fitting(rows: pa.Table, table: "Table", dim: int) -> pa.Table:
    """The rows with all columns of the table, which gets those of new metadata.

    Raises:
        DataError: they don't fit.
    """
    present = metadata_kinds(table.schema)
    fields = merged_metadata(rows, present)
    rows = fitting_rows(rows, dim, fields)
    new = {META + name: f"CAST(NULL AS {_SQL_TYPES[kind]})" for name, kind in fields.items() if name not in present}
    if new:
        table.add_columns(new)
    return rows.select(table.schema.names)
