"""Brings an index to what a source holds now, batch by batch, so that it can be killed at any moment and go on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from modalloy.data.build import Reject
from modalloy.data.inside import Inside
from modalloy.data.known_files import KnownFiles
from modalloy.data.manifest import Manifest
from modalloy.data.readers import Unread
from modalloy.encoders import Encoder
from modalloy.errors import ConfigError, DataError, ImageError
from modalloy.index.base import Index, Snapshot, Source
from modalloy.index.changes import Change, Changes, Kind, Picture, compare
from modalloy.index.embedding import Ahead, Embedded, Embedding
from modalloy.index.encoder_spec import made_by
from modalloy.index.held import captions_without_rows, held_pictures, merged_kinds, table_of
from modalloy.progress import BAR_FROM, track

Read = Callable[[KnownFiles], tuple[Manifest, list[Reject]]]
"""Reads a source's collection, given what is known of its files."""

_CHANGES = (*get_args(Kind), "removed")
_BAR_FROM = 32
_CARRIED = 4096
"""Pictures of a commit that embeds nothing: as many as a renamed folder may hold, while memory can hold their rows."""


@dataclass(frozen=True)
class SyncConfig:
    """How an index is brought to what its sources hold.

    Raises:
        ConfigError: a number is too small.
    """

    batch_size: int = 32
    """Pictures or captions that are embedded at once."""
    commit_size: int = 256
    """Pictures, with their captions, that become searchable at once; a kill loses the work on no more."""
    workers: int | None = None
    """Threads that decode pictures; default: one a core, at most 4."""
    rehash: bool = False
    """Read every byte of every picture again, instead of those alone whose size or time has changed, and embed captions
    that have no vector."""
    allow_removals: bool = False
    """Remove pictures from the index even where more than half of a source's pictures are gone."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "commit_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")


@dataclass(frozen=True)
class Synced:
    """What was done to the pictures of one source."""

    source: str
    """Its name."""
    collection: str
    """What was read."""
    pictures: int
    """How many pictures of it the index now holds."""
    new: int
    """Embedded, with all their captions."""
    changed: int
    """Embedded again, since the file's content has changed."""
    moved: int
    """Files that were renamed or copied: nothing was embedded."""
    recaptioned: int
    """The same pictures with other captions, of which only the new ones were embedded."""
    touched: int
    """The same pictures with another split or other metadata: nothing was embedded."""
    removed: int
    """No longer in the source, or no longer readable."""
    rejects: tuple[Reject, ...]
    """Pictures and captions that can't be in the index, and why."""
    unread: Unread
    """What else lies in the source's folder, as far as it was looked for."""

    @property
    def changes(self) -> int:
        """How many pictures aren't as they were."""
        return sum(getattr(self, kind) for kind in _CHANGES)

    def then(self, later: "Synced") -> "Synced":
        """What was done to the source at two times together: changes add up, all else is as it is by now."""
        return replace(later, **{kind: getattr(self, kind) + getattr(later, kind) for kind in _CHANGES})

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def sync(index: Index, encoder: Encoder, source: Source, read: Read, config: SyncConfig | None = None) -> Synced:
    """Brings the rows of one source to what it holds now. What is as it was isn't read, embedded or written.

    Renamed files, other metadata and removals are committed first; then what has to be embedded, batch by batch.

    Args:
        index: to be changed; its head gets the source, if it hasn't it.
        encoder: that of the index.
        source: which; its root is found anew.
        read: reads its collection.
        config: how.

    Raises:
        ConfigError: the index's vectors are another encoder's.
        DataError: more than half of the source's pictures are gone, or an id is another source's, too.
    """
    config = config or SyncConfig()
    snapshot = index.snapshot()
    if not made_by(snapshot.head, encoder):
        raise ConfigError(
            f"the vectors of {index.location} aren't those of {encoder.spec}; build the index anew with it "
            f"(modalloy index build --encoder {encoder.spec})."
        )
    held = held_pictures(snapshot, source.name)
    files = KnownFiles({} if config.rehash else {each.path: each.file for each in held.values()})
    manifest, rejects = read(files)
    rejects = [Reject(_id(source, reject.id), reject.reason) for reject in rejects]
    root = manifest.root.resolve()
    source = replace(source, root=str(root))
    wanted, unusable = _wanted(manifest, source, files)
    lost = captions_without_rows(snapshot, source.name, held) if config.rehash else ()
    changes = compare(held, wanted, lost)
    if not config.allow_removals:
        require_most(changes.lost, len(held), source)
    _refuse_ids_of_others(snapshot, source, [change.picture.id for change in changes.changed])
    if source not in snapshot.head.sources:
        index.commit(head=snapshot.head.with_source(source))
    embedding = Embedding(encoder, snapshot, source.name, root, files, config.batch_size, config.workers)
    done = _Commits(index, embedding, held, changes).make(config.commit_size)
    return Synced(
        source.name,
        source.collection,
        pictures=changes.unchanged + len(done.kinds),
        removed=done.removed,
        rejects=tuple(dict.fromkeys([*rejects, *unusable, *done.rejects])),
        unread=Unread(source.collection),
        **{kind: done.kinds.count(kind) for kind in get_args(Kind)},
    )


def _id(source: Source, id: str) -> str:
    return f"{source.name}:{id}" if source.name else id


def _wanted(manifest: Manifest, source: Source, files: KnownFiles) -> tuple[list[Picture], list[Reject]]:
    """The collection's pictures as an index shall hold them, and those that it can't."""
    wanted, rejects, root = [], [], Path(source.root)
    inside = Inside(root)
    for item in track(manifest, "looking at files", total=len(manifest), shown_from=BAR_FROM):
        id = _id(source, item.id)
        try:
            inside.real(item.path)
            # A saved manifest brings a checksum of its own, but what counts is the file that will be embedded.
            file = files.look(root, item.path)
        except ImageError as error:
            rejects.append(Reject(id, str(error)))
            continue
        wanted.append(Picture(id, item.path, file, item.split, item.captions, item.metadata))
    return wanted, rejects


def require_most(lost: int, held: int, source: Source) -> None:
    """Raises a DataError if most of a source's pictures would leave the index, as when a disk isn't mounted."""
    if 2 * lost > held:
        raise DataError(
            f"{lost:,} of the {held:,} pictures of {source.collection} in the index are gone: is a disk not "
            "mounted, or does a list in the folder, such as metadata.csv, not name them? If they are to be removed "
            "from the index, say --allow-removals."
        )


def _refuse_ids_of_others(snapshot: Snapshot, source: Source, ids: Sequence[str]) -> None:
    if all(each.name == source.name for each in snapshot.head.sources):
        return
    for start in range(0, len(ids), _CARRIED):
        for row in snapshot.rows(ids[start : start + _CARRIED], ["id", "source"]).to_pylist():
            if row["source"] != source.name:
                raise DataError(
                    f"{source.collection} has a picture {row['id']!r}, and so has the source {row['source']!r}; give "
                    "one of them another name (modalloy index add --name)."
                )


class _Commits:
    """The commits that carry out some changes."""

    def __init__(self, index: Index, embedding: Embedding, held: Mapping[str, Picture], changes: Changes) -> None:
        self._index, self._embedding, self._held = index, embedding, held
        self._free = [change for change in changes.changed if not change.costs]
        self._costly = [change for change in changes.changed if change.costs]
        # What is gone serves until the last picture that takes over from it is committed.
        gone = set(changes.gone)
        self._last_use = {
            change.donor: change.picture.id for change in (*self._free, *self._costly) if change.donor in gone
        }
        self.removed = len(changes.gone) - len(self._last_use)
        self._removed = [row for id in changes.gone if id not in self._last_use for row in held[id].row_ids]
        self._kinds = dict(embedding.snapshot.metadata)
        self.rejects: list[Reject] = []
        self.kinds: list[Kind] = []

    def make(self, commit_size: int) -> "_Commits":
        """Makes them all."""
        free = iter(self._free)
        # The first one is made where there are only removals, too.
        while (batch := list(islice(free, _CARRIED))) or self._removed:
            self._commit(batch, self._embedding.rows(batch))
        with self._embedding.ahead(self._costly) as ahead:
            for batch, embedded in self._embedded(ahead, commit_size):
                self._commit(batch, embedded)
        return self

    def _embedded(self, ahead: Ahead, commit_size: int) -> Iterator[tuple[list[Change], Embedded]]:
        changes = track(self._costly, "embedding pictures", total=len(self._costly), shown_from=_BAR_FROM)
        batch, embedded = list[Change](), Embedded([], [], [])
        while some := list(islice(changes, min(self._embedding.batch_size, commit_size - len(batch)))):
            batch += some
            embedded.extend(self._embedding.rows(some, ahead))
            if len(batch) == commit_size:
                yield batch, embedded
                batch, embedded = [], Embedded([], [], [])
        if batch:
            yield batch, embedded

    def _commit(self, batch: Sequence[Change], embedded: Embedded) -> None:
        rows = {row["id"] for row in embedded.rows}
        for change in batch:
            # Captions that it has no more, or all of it where it is broken now.
            own = self._held.get(change.picture.id)
            self._removed += [id for id in own.row_ids if id not in rows] if own is not None else []
            if change.donor is not None and self._last_use.get(change.donor) == change.picture.id:
                self._removed += self._held[change.donor].row_ids
        self._kinds = merged_kinds(self._kinds, embedded.pictures)
        table = table_of(embedded.rows, self._embedding.snapshot.head.dim, self._kinds) if rows else None
        if rows or self._removed:
            self._index.commit(table, self._removed)
        self._removed = []
        self.rejects += embedded.rejects
        self.kinds += [change.kind for change in batch if change.picture.id in rows]
        self.removed += sum(change.picture.id in self._held and change.picture.id not in rows for change in batch)
