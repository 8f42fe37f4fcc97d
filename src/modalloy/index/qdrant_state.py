"""The states of an index in a Qdrant cluster: which rows of which collection count.

Qdrant changes one point at a time atomically, and a point on condition of what it is. So all that decides what counts
is in two points of a small collection: which generation it is, and the state of that.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from modalloy.errors import CheckpointError, one_line
from modalloy.index.base import Head
from modalloy.index.schema import MetaKind

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_STATES = UUID("a5f0a1d1-55c5-4f0a-8d0e-3f0d8b0a4c11")
_CURRENT = str(uuid5(_STATES, "current"))


@dataclass(frozen=True, slots=True)
class State:
    """What a generation says of itself and which of its rows count."""

    head: Head
    metadata: Mapping[str, MetaKind]
    version: int
    """Rows added up to it, and not removed up to it, are there."""
    claimed: int
    """The version that the last writer makes or made; greater than `version` while it is at work, or if it died."""
    aborted: tuple[int, ...]
    """Versions that were claimed and never finished: what was written under them doesn't count."""
    token: str
    """Of the last write, so that each writer knows its own."""


@dataclass(frozen=True, slots=True)
class Current:
    """The generation that counts."""

    rows: str
    """The collection that holds its rows."""
    since: float
    """When it was switched to, in seconds since 1970."""


class States:
    """Reads and writes states; a write succeeds only if nobody else wrote since.

    Args:
        client: of the cluster.
        name: of the collection that holds them.
        location: for messages.
    """

    def __init__(self, client: "QdrantClient", name: str, location: str) -> None:
        self._client, self._name, self._location = client, name, location

    def create(self, replicas: int) -> None:
        """Makes the collection, unless there is one."""
        if not self._client.collection_exists(self._name):
            self._client.create_collection(self._name, vectors_config={}, replication_factor=replicas)

    def current(self) -> Current | None:
        """The generation that counts; None where there is no index."""
        if not self._client.collection_exists(self._name):
            return None
        found = self._read(_CURRENT)
        return None if found is None else Current(found["rows"], found["since"])

    def switch(self, current: Current, instead_of: str | None) -> bool:
        """Makes a generation the one that counts, if that of the collection `instead_of` still does."""
        self._write(_CURRENT, asdict(current), {"rows": instead_of or ""})
        return self.current() == current

    def state(self, rows: str) -> State | None:
        """The state of the generation whose rows are in a collection; None where there is no such generation.

        Raises:
            CheckpointError: it is damaged.
        """
        found = self._read(_point(rows))
        if found is None:
            return None
        head = Head.from_dict(found["head"], self._location)
        try:
            aborted = tuple(found["aborted"])
            return State(head, found["metadata"], found["version"], found["claimed"], aborted, found["token"])
        except LookupError as error:
            raise CheckpointError(
                f"{self._location} doesn't describe an index ({one_line(error)}); build it again."
            ) from None

    def write(self, rows: str, state: State, instead_of: str | None) -> State:
        """Puts a state in the place of the one whose token is `instead_of`, if that is still there.

        Returns:
            What is there now.
        """
        payload = {
            "head": state.head.to_dict(),
            "metadata": dict(state.metadata),
            "version": state.version,
            "claimed": state.claimed,
            "aborted": list(state.aborted),
            "token": state.token,
        }
        self._write(_point(rows), payload, {"token": instead_of or ""})
        written = self.state(rows)
        assert written is not None  # either was written
        return written

    def _read(self, point: str) -> dict[str, Any] | None:
        from qdrant_client import models

        # A replica that lags behind would give an old state to a writer.
        found = self._client.retrieve(self._name, [point], consistency=models.ReadConsistencyType.MAJORITY)
        return found[0].payload if found else None

    def _write(self, point: str, payload: Mapping[str, Any], instead_of: Mapping[str, str]) -> None:
        from qdrant_client import models

        expected: list[models.Condition] = [
            models.FieldCondition(key=key, match=models.MatchValue(value=value)) for key, value in instead_of.items()
        ]
        self._client.upsert(
            self._name,
            [models.PointStruct(id=point, vector={}, payload=dict(payload))],
            wait=True,
            ordering=models.WriteOrdering.STRONG,
            # Of a point that is there already; one that isn't is inserted.
            update_filter=models.Filter(must=expected),
        )


def _point(rows: str) -> str:
    return str(uuid5(_STATES, rows))
