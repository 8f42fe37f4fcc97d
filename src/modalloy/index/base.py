"""The seam of the index: what any store of retrieval vectors offers to what fills it and what searches it.

Everything that reads goes by a snapshot, which never changes: whoever holds one sees one state of the index, whatever
is written meanwhile.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from modalloy.encoders import Fingerprint, Modality
from modalloy.errors import CheckpointError, FeatureError, one_line
from modalloy.index.condition import Condition
from modalloy.index.schema import MetaKind

FORMAT = "modalloy-index-1"
_LONGEST = 65_536
_LONGEST_SPEC = 1000


@dataclass(frozen=True, slots=True)
class Source:
    """A collection whose pictures an index holds, so that they can be looked through again."""

    name: str
    """Unique in the index. The ids of its items begin with "NAME:", except where the name is empty."""
    collection: str
    """What `read_collection` reads: a folder or a file, as an absolute path, or "demo"."""
    images: str | None
    """The folder of a list's pictures, if elsewhere."""
    root: str
    """The folder that the paths of its pictures start from, absolute."""


@dataclass(frozen=True, slots=True)
class Head:
    """What an index says of itself."""

    spec: str
    """The encoder that makes its vectors, as `load_encoder` takes it."""
    fingerprints: Mapping[Modality, Fingerprint]
    """Of that encoder; a query made by another one is refused."""
    dim: int
    """Length of a retrieval vector."""
    sources: tuple[Source, ...] = ()
    """Where its pictures come from."""
    generation: int = 0
    """Grows when all vectors are replaced by another encoder's."""

    def with_source(self, source: Source) -> Self:
        """The same with a source added, or replaced by its name."""
        return replace(self, sources=(*(each for each in self.sources if each.name != source.name), source))

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "format": FORMAT,
            "spec": self.spec,
            "fingerprints": {modality: made_by.to_dict() for modality, made_by in self.fingerprints.items()},
            "dim": self.dim,
            "sources": [asdict(source) for source in self.sources],
            "generation": self.generation,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], where: str) -> Self:
        """What `to_dict` gave.

        Raises:
            CheckpointError: it isn't an index's, or of another format.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            got = repr(value.get("format")) if isinstance(value, Mapping) else "something else"
            raise CheckpointError(f"{where} isn't an index: expected {FORMAT!r}, got {got}.")
        try:
            return cls(
                spec=_spec(value["spec"]),
                fingerprints={side: Fingerprint.from_dict(made_by) for side, made_by in value["fingerprints"].items()},
                dim=_whole(value["dim"], "dim", 1, _LONGEST),
                sources=tuple(_source(source) for source in value["sources"]),
                generation=_whole(value["generation"], "generation", 0, 2**31),
            )
        except (LookupError, TypeError, ValueError, AttributeError, FeatureError) as error:
            raise CheckpointError(
                f"{where} doesn't describe an index ({one_line(error)}); make it anew (modalloy index build)."
            ) from error


def _source(value: Mapping[str, Any]) -> Source:
    """Refuses what isn't ours, since an index may come from a stranger."""
    for name in ("name", "collection", "root") if value["images"] is None else ("name", "collection", "root", "images"):
        if ".." in PurePath(_text(value[name], name)).parts:
            raise ValueError(f"a source's {name} is {value[name]!r}, with '..'")
    source = Source(**value)
    if source.root and not PurePath(source.root).is_absolute():
        raise ValueError(f"a source's root must be absolute, got {source.root!r}")
    return source


def _spec(value: Any) -> str:
    # Each "mid:" of a spec is a call within another; no path that somebody has chosen is so long, or has a NUL.
    if len(_text(value, "spec")) > _LONGEST_SPEC or "\0" in value:
        raise ValueError(f"spec must be a text of at most {_LONGEST_SPEC:,} characters without NUL, got {value[:50]!r}")
    return str(value)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {value!r}")
    return value


def _whole(value: Any, name: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}")
    return value


class Found(NamedTuple):
    """The answers to one query, best first."""

    ids: list[str]
    """Of the pictures or captions."""
    scores: list[float]
    """Their inner products with the query, in float32 or better."""


@runtime_checkable
class Snapshot(Protocol):
    """One state of an index; safe to read from several threads."""

    head: Head
    version: int
    """Another number for each state."""

    @property
    def metadata(self) -> Mapping[str, MetaKind]:
        """The users' fields and their kinds."""

    def search(
        self,
        modality: Modality,
        queries: Float[Tensor, "queries dim"],
        k: int,
        where: Sequence[Condition] = (),
        exact: bool = False,
    ) -> list[Found]:
        """The `k` pictures, or captions, with the largest inner products for each query; fewer where there are fewer.

        Args:
            modality: what to find.
            queries: finite.
            k: how many.
            where: conditions that all must hold.
            exact: look at every vector, however many there are.

        Raises:
            ConfigError: `k` is below 1, or the index has no such field.
            DataError: a query isn't finite, or of another length than the index's vectors.
        """

    def rows(self, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """Some columns of some rows, in the order of `ids`; ids that aren't there are left out."""

    def read_ahead(self) -> None:
        """Prepares for many questions, where that makes their answers faster; a single one doesn't pay for it.

        What takes long may be left to the first search for pictures, and to that for captions.
        """

    def scan(
        self,
        columns: Sequence[str],
        where: Sequence[Condition] = (),
        limit: int | None = None,
        offset: int = 0,
    ) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows that satisfy the conditions, in an order that is the same for the snapshot."""

    def count(self, where: Sequence[Condition] = ()) -> int:
        """How many rows satisfy the conditions."""


@runtime_checkable
class Index(Protocol):
    """A store of pictures and captions with their retrieval vectors."""

    location: str
    """A folder or a URI."""

    @property
    def head(self) -> Head:
        """What the generation that this writes to says of itself."""

    def snapshot(self) -> Snapshot:
        """The newest state."""

    def commit(self, rows: pa.Table | None = None, removed: Sequence[str] = (), head: Head | None = None) -> None:
        """Adds and replaces rows, and removes others, by their ids: all at once, or nothing.

        Args:
            rows: columns as `rows_schema` says; fields of metadata that the index doesn't have yet are added to it.
            removed: ids of rows to remove; those that aren't there are ignored.
            head: what the index says of itself from now on; of the same encoder and generation. It is written first, so
                that there is no row whose source isn't known.

        Raises:
            DataError: the rows don't fit the index, or two of them have the same id.
        """

    def optimize(self) -> None:
        """Makes searches fast again after many commits, and drops what no reader needs any more."""

    def begin(self, head: Head) -> Self:
        """The next generation, beside the one that counts, and with what an interrupted attempt at it already holds.

        Args:
            head: of the next generation; its number is given to it.
        """

    def switch(self) -> None:
        """Makes the generation that `begin` gave the one that counts, at once.

        Raises:
            ConfigError: it does already, or another generation was switched to meanwhile.
        """
