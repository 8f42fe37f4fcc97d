"""The index in a Qdrant cluster, for collections that one machine can't hold.

Qdrant has neither transactions over several points nor snapshots to read from, so rows carry what stands in for them:

- A point is never changed, except for being marked. Each says from which version of the index on it is there, and from
  which on it isn't; a reader asks for those that are there in the version it began with. A commit first writes the new
  points and marks the ones they replace, which no reader notices, then makes its version the one that counts, by the
  change of one point, which is atomic. So a reader sees a commit wholly or not at all, as with the other stores.
- Until `optimize` removes what was replaced more than an hour ago; a reader that is older than that may miss rows.
- A writer that dies leaves rows that never count, and `optimize` removes them. Of two writers at a time the later one
  wins: the earlier one's unfinished commit is given up, and it is told so.
- The graph of Qdrant is approximate, so that a search that isn't `exact` may miss some of the best.

The cluster's own guarantees are presumed: what it acknowledges is kept, and `replicas` of it if there is to be more
than one.
"""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self
from uuid import uuid4

import pyarrow as pa

from modalloy.errors import CheckpointError, ConfigError, DataError
from modalloy.files import sha256_of_text
from modalloy.index.base import Head
from modalloy.index.checks import fitting_rows, merged_metadata
from modalloy.index.qdrant_config import QdrantLocation
from modalloy.index.qdrant_connection import connect, reaching
from modalloy.index.qdrant_points import points_of
from modalloy.index.qdrant_rows import QdrantRows
from modalloy.index.qdrant_snapshot import QdrantSnapshot
from modalloy.index.qdrant_state import Current, State, States

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_GENERATION = re.compile(r"\d+_[0-9a-f]{12}")
_KEPT_FOR_READERS = 3600.0
"""Seconds."""


class QdrantIndex:
    """See `Index`; made by `create` or `open`.

    Args:
        place: where it is.
        client: of the cluster.
        head: of the generation to write to.
    """

    def __init__(self, place: QdrantLocation, client: "QdrantClient", head: Head) -> None:
        self.location = f"{place.url}/{place.collection}"
        self._place, self._client, self._head = place, client, head
        self._states = _states(place, client)
        self._rows = QdrantRows(client, _rows_name(place, head))
        self._newest: QdrantSnapshot | None = None

    @classmethod
    def create(cls, location: str, head: Head, client: "QdrantClient | None" = None) -> Self:
        """Makes an index without rows.

        Args:
            location: as `QdrantLocation` reads it.
            head: what it says of itself.
            client: of the cluster, if there is one already.

        Raises:
            ConfigError: there is one already.
        """
        place = QdrantLocation.parse(location)
        client = client or connect(place)
        index = cls(place, client, head)
        with reaching(index.location):
            index._states.create(place.config.replicas)
            if index._states.current() is None:
                index._create_rows()
                # Last, so that what is interrupted before isn't an index yet.
                if index._states.switch(Current(index._rows.name, time.time()), instead_of=None):
                    return index
        raise ConfigError(f"{index.location} is an index already; add to it, or choose another place.")

    @classmethod
    def open(cls, location: str, client: "QdrantClient | None" = None) -> Self:
        """Opens an index.

        Args:
            location: as `QdrantLocation` reads it.
            client: of the cluster, if there is one already.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        place = QdrantLocation.parse(location)
        client = client or connect(place)
        with reaching(location):
            states = _states(place, client)
            current = states.current()
            state = None if current is None else states.state(current.rows)
        if state is None:
            raise CheckpointError(f"{location} holds no index; `modalloy index build` makes one.")
        return cls(place, client, state.head)

    @property
    def head(self) -> Head:
        """What the generation that this writes to says of itself."""
        return self._head

    def snapshot(self) -> QdrantSnapshot:
        """See `Index`. The same object as before if nothing was committed meanwhile."""
        with reaching(self.location):
            rows = self._rows.name if self._is_begun() else self._current().rows
            state = self._state(rows)
        newest = QdrantSnapshot(self._client, self.location, rows, state, self._place.config)
        if self._newest is None or self._newest.version != newest.version:
            self._newest = newest
        return self._newest

    def commit(self, rows: pa.Table | None = None, removed: Sequence[str] = (), head: Head | None = None) -> None:
        """See `Index`; the head changes at once with the rows.

        Raises:
            ConfigError: the head is of another encoder, or another generation was switched to meanwhile.
            DataError: the rows don't fit the index, or another writer took over; nothing is changed then.
        """
        if head is not None and _made_by(head) != _made_by(self._head):
            raise ConfigError("a commit can't change an index's encoder or generation; build the next generation.")
        with reaching(self.location):
            if not self._is_begun() and self._current().rows != self._rows.name:
                raise ConfigError(f"{self.location} has a newer generation by now; open it again.")
            state = self._state(self._rows.name)
            metadata = dict(state.metadata)
            if rows is not None:
                metadata = merged_metadata(rows, metadata)
                rows = fitting_rows(rows, self._head.dim, metadata)
            claimed = self._claim(state)
            points = [] if rows is None else list(points_of(rows, claimed.claimed))
            self._rows.index_new(metadata, state.metadata)
            self._rows.mark_removed([*removed, *([] if rows is None else rows["id"].to_pylist())], claimed, time.time())
            self._rows.add(points)
            self._publish(replace(claimed, head=head or state.head, metadata=metadata, version=claimed.claimed))
        self._head = head or self._head

    def optimize(self) -> None:
        """See `Index`. What was replaced or removed in the last hour stays, for those who read it."""
        before = time.time() - _KEPT_FOR_READERS
        with reaching(self.location):
            self._rows.clean(self._state(self._rows.name), before)
            current = self._current()
            if current.rows == self._rows.name and current.since < before:
                self._forget_others()

    def begin(self, head: Head) -> Self:
        """The next generation, beside the one that counts, and with what an interrupted attempt at it already holds.

        Args:
            head: of the next generation; its number is given to it.
        """
        with reaching(self.location):
            generation = self._state(self._current().rows).head.generation + 1
            beside = type(self)(self._place, self._client, replace(head, generation=generation))
            if self._states.state(beside._rows.name) is None:
                beside._create_rows()
            else:
                beside.commit(head=beside._head)
        return beside

    def switch(self) -> None:
        """Makes the generation that `begin` gave the one that counts, at once.

        Raises:
            ConfigError: it does already, or another generation was switched to meanwhile.
        """
        with reaching(self.location):
            replaced = self._current()
            follows = self._state(replaced.rows).head.generation == self._head.generation - 1
            if not follows or not self._states.switch(Current(self._rows.name, time.time()), instead_of=replaced.rows):
                raise ConfigError(
                    f"{self.location}: generation {self._head.generation} counts already, or was overtaken."
                )

    def _current(self) -> Current:
        current = self._states.current()
        if current is None:
            raise CheckpointError(f"{self.location} holds no index any more; `modalloy index build` makes one.")
        return current

    def _state(self, rows: str) -> State:
        state = self._states.state(rows)
        if state is None:
            raise CheckpointError(f"{self.location}: the state of {rows} is missing; build the index again.")
        return state

    def _is_begun(self) -> bool:
        """Whether this writes to a generation that doesn't count yet."""
        return self._state(self._current().rows).head.generation < self._head.generation

    def _create_rows(self) -> None:
        self._rows.create(self._head.dim, self._place.config)
        left = self._states.state(self._rows.name)
        state = State(self._head, {}, version=0, claimed=0, aborted=(), token=uuid4().hex)
        self._states.write(self._rows.name, state, instead_of=None if left is None else left.token)

    def _claim(self, state: State) -> State:
        """A version to write, and all earlier ones that weren't finished given up."""
        unfinished = range(state.version + 1, state.claimed + 1)
        mine = replace(
            state,
            claimed=state.claimed + 1,
            aborted=tuple(sorted({*state.aborted, *unfinished})),
            token=uuid4().hex,
        )
        if self._states.write(self._rows.name, mine, instead_of=state.token).token != mine.token:
            raise DataError(f"{self.location}: another writer has begun a commit just now; try again.")
        return mine

    def _publish(self, state: State) -> None:
        """Makes a version that was claimed the one that counts."""
        now = self._states.write(self._rows.name, replace(state, token=uuid4().hex), instead_of=state.token)
        # The next writer may have claimed its version already.
        if now.version < state.version or state.version in now.aborted:
            raise DataError(
                f"{self.location}: another writer took over before this commit was finished, so that "
                "nothing of it counts; try again when that one is done."
            )

    def _forget_others(self) -> None:
        """Drops the rows of other generations, once nobody can be reading them any more."""
        for each in self._client.get_collections().collections:
            beginning, _, rest = each.name.partition(f"{self._place.collection}_")
            if not beginning and _GENERATION.fullmatch(rest) and each.name != self._rows.name:
                self._client.delete_collection(each.name)


def _states(place: QdrantLocation, client: "QdrantClient") -> States:
    return States(client, f"{place.collection}_states", place.url)


def _rows_name(place: QdrantLocation, head: Head) -> str:
    """The collection of a generation's rows; another encoder's attempt at the same generation has another one."""
    made_by = json.dumps({side: each.digest for side, each in sorted(head.fingerprints.items())})
    return f"{place.collection}_{head.generation}_{sha256_of_text(made_by)[:12]}"


def _made_by(head: Head) -> tuple[object, ...]:
    return head.generation, head.fingerprints, head.dim
