"""Makes an index of collections and keeps it current."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modalloy.counted import counted
from modalloy.data.build import Reject
from modalloy.data.demo import DEMO_FOLDER
from modalloy.encoders import Encoder, load_encoder
from modalloy.errors import CheckpointError, ConfigError, DataError
from modalloy.features.devices import require_devices
from modalloy.index import Condition, Head, Index, Source, create_index, open_index
from modalloy.index.encoder_spec import head_of, made_by, spec_at
from modalloy.index.lock import is_uri
from modalloy.index.source_name import check_source_name, source_name_of
from modalloy.index.summary import count_pictures
from modalloy.index.sync import SyncConfig, Synced, require_most, sync
from modalloy.index.watch import watch, watched_folders
from modalloy.index.writing import index_to_change, lock_to_make
from modalloy.progress import waiting
from modalloy.workflow.collections import DEMO, open_with_rejects, unread_beside, warn_of
from modalloy.workflow.default_encoder import default_spec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Updated:
    """What became of an index."""

    location: str
    """Where it is."""
    encoder: str
    """The spec of its encoder."""
    generation: int
    """Another one than before if all was embedded anew."""
    version: int
    """Of its newest state."""
    sources: tuple[Synced, ...]
    """What was done to each source."""
    problems: tuple[str, ...] = ()
    """What kept further sources from being looked at."""

    def then(self, later: "Updated") -> "Updated":
        """What became of it at two times together: changes add up, all else is as it is by now."""
        done = {source.source: source for source in self.sources}
        for source in later.sources:
            done[source.source] = done[source.source].then(source) if source.source in done else source
        return replace(later, sources=tuple(done.values()))

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "index": self.location,
            "encoder": self.encoder,
            "generation": self.generation,
            "version": self.version,
            "sources": [source.to_dict() for source in self.sources],
            "problems": list(self.problems),
        }


def source_of(collection: str, images: str | None = None, name: str = "") -> Source:
    """A collection as a source.

    Args:
        collection: what `open_collection` takes.
        images: folder of its pictures, if elsewhere.
        name: for its pictures' ids.

    Raises:
        ConfigError: the name can't be a source's, or the collection is behind a URI.
    """
    check_source_name(name)
    if is_uri(collection):
        raise ConfigError(f"a collection is a folder or a file of this machine, got {collection}; copy it first.")
    if collection == DEMO:
        return Source(name, DEMO, images, str(DEMO_FOLDER))
    return Source(name, os.path.abspath(collection), images and os.path.abspath(images), root="")


class Keeper:
    """Makes one index, and keeps it current; its encoder is loaded once.

    Args:
        location: a folder or a URI.
        config: how its sources are looked through.
        device: where the encoder runs; default: where it is.
    """

    def __init__(self, location: str, config: SyncConfig | None = None, device: str | None = None) -> None:
        if device is not None:
            require_devices([device])
        self.location, self._config, self._device = location, config or SyncConfig(), device
        self._encoders: dict[str, Encoder] = {}
        self._told: set[Reject | str] = set()

    def build(self, collection: str, images: str | None = None, spec: str | None = None) -> Updated:
        """Makes an index of a collection, or brings the one that there is to what the collection holds now.

        Where the encoder is another one than the index's, or has other weights by now, all sources are embedded anew
        in the index's next generation, which replaces the present one once it is whole.

        Args:
            collection: what `open_collection` takes.
            images: folder of its pictures, if elsewhere.
            spec: of the encoder; default: that of the index, else the one alloy among the runs.

        Raises:
            ConfigError: the index is of another collection, the encoder can't fill one, or there is none to be found.
        """
        source = source_of(collection, images)
        _require_collection(source)
        # Before the lock, which makes the folder.
        encoder = self._loaded(spec or self._usual_spec())
        head = head_of(encoder, self.location)
        with lock_to_make(self.location):
            index = self._opened_or_made(head)
            _require_same(index, source)
            if spec is None:
                # Another process may have switched to another one while this one waited.
                encoder = self._loaded(spec_at(index.head.spec, self.location))
            if not made_by(index.head, encoder):
                return self._built_anew(index, encoder, source)
            if head.spec != index.head.spec and spec is not None:
                index.commit(head=replace(index.head, spec=head.spec))
            return _updated(index, [self._sync(index, encoder, source)])

    def add(self, collection: str, images: str | None = None, name: str | None = None) -> Updated:
        """Adds a further source to an index; one that it has already is brought to what it holds now.

        Args:
            collection: what `open_collection` takes.
            images: folder of its pictures, if elsewhere.
            name: for its pictures' ids; default: the collection's file name.

        Raises:
            ConfigError: another source has the name, or the collection has another name already.
            CheckpointError: there is no index.
        """
        source = source_of(collection, images)
        _require_collection(source)
        with index_to_change(self.location) as index:
            known = [each for each in index.head.sources if _same(each, source)]
            if name is None:
                name = known[0].name if known else source_name_of(Path(source.collection).stem)
            source = source_of(collection, images, name)
            _require_same(index, source)
            if known and name != known[0].name:
                raise ConfigError(
                    f"{index.location} holds {source.collection} already, as its source {known[0].name!r}; a picture "
                    "would be found twice. `modalloy index update` looks for what is new in it."
                )
            return _updated(index, [self._sync(index, self._own_encoder(index), source)])

    def update(self) -> Updated:
        """Brings an index to what all of its sources hold now; what is wrong with one doesn't hold up the others.

        Raises:
            CheckpointError: there is no index.
            ConfigError: its encoder has other weights by now.
        """
        with index_to_change(self.location) as index:
            encoder, done, problems = self._own_encoder(index), list[Synced](), list[str]()
            for source in _with_collections(index):
                try:
                    done.append(self._sync(index, encoder, source))
                except (DataError, OSError) as error:
                    problems.append(f"source {source.name!r} wasn't looked through: {error}")
            return _updated(index, done, problems)

    def watch(self, updated: Updated) -> Updated:
        """Updates the index whenever something changes in its sources' folders, until Ctrl-C.

        Args:
            updated: what was done before.

        Returns:
            What has been done together with that.
        """
        folders = watched_folders(_with_collections(open_index(self.location)))
        if not folders:
            raise DataError(f"none of the folders of {self.location} is there, so that nothing can be watched.")
        _log.info("watching %s; Ctrl-C ends it", ", ".join(map(str, folders)))
        total = updated

        def look() -> None:
            nonlocal total
            total = total.then(self._update_and_tell())

        watch(folders, look, self.location)
        return total

    def _update_and_tell(self) -> Updated:
        updated = self.update()
        for problem in updated.problems:
            _log.error("%s", problem)
        # What is broken stays so for many an update; what was mended meanwhile may break again.
        told, rejects = self._told, {reject for source in updated.sources for reject in source.rejects}
        self._told = rejects | {line for source in updated.sources for line in source.unread.lines()}
        for source in updated.sources:
            warn_of([reject for reject in source.rejects if reject not in told])
            for line in source.unread.lines():
                if line not in told:
                    _log.warning("%s", line)
            if source.changes:
                _log.info("%s: %s", source.collection, summary_of(source))
        return updated

    def _usual_spec(self) -> str:
        try:
            return spec_at(open_index(self.location).head.spec, self.location)
        except CheckpointError:
            return default_spec()

    def _opened_or_made(self, head: Head) -> Index:
        try:
            return open_index(self.location)
        except CheckpointError as missing:
            try:
                return create_index(self.location, head)
            except ConfigError:
                # There is one, so that it is damaged.
                raise missing from None

    def _sync(self, index: Index, encoder: Encoder, source: Source) -> Synced:
        done = sync(
            index,
            encoder,
            source,
            lambda known: open_with_rejects(source.collection, source.images, known),
            self._config,
        )
        return replace(done, unread=unread_beside(source.collection, source.images))

    def _built_anew(self, index: Index, encoder: Encoder, source: Source) -> Updated:
        head = replace(head_of(encoder, self.location), sources=index.head.sources).with_source(source)
        for each in head.sources:
            if not each.collection:
                raise ConfigError(
                    f"the source {each.name!r} was imported without its pictures, so that they can't be embedded anew; "
                    f"remove it (modalloy index remove --source {each.name}), or make another index."
                )
        _log.info("%s goes on answering while all is embedded anew by %s", self.location, encoder.spec)
        beside = index.begin(head)
        done = [self._sync(beside, encoder, each) for each in head.sources]
        # It took long; these are the changes since.
        caught_up = [self._sync(beside, encoder, each) for each in head.sources]
        if not self._config.allow_removals:
            for each in head.sources:
                before, after = (_pictures(one, each) for one in (index, beside))
                require_most(before - after, before, each)
        beside.optimize()
        beside.switch()
        return _updated(beside, [replace(old, pictures=new.pictures) for old, new in zip(done, caught_up, strict=True)])

    def _own_encoder(self, index: Index) -> Encoder:
        encoder = self._loaded(spec_at(index.head.spec, self.location))
        if not made_by(index.head, encoder):
            raise ConfigError(
                f"{encoder.spec} isn't any more what made the vectors of {self.location}; embed all anew with it "
                "(modalloy index build), or bring back what it was."
            )
        return encoder

    def _loaded(self, spec: str) -> Encoder:
        if spec not in self._encoders:
            with waiting(f"loading {spec}"):
                encoder = load_encoder(spec)
            if self._device is not None:
                encoder.to(self._device)
            self._encoders[spec] = self._encoders[encoder.spec] = encoder
        return self._encoders[spec]


def summary_of(source: Synced) -> str:
    """What was done to a source, in a line."""
    kinds = ("new", "changed", "moved", "recaptioned", "touched", "removed")
    counts = [f"{count:,} {kind}" for kind in kinds if (count := getattr(source, kind))]
    return f"{', '.join(counts) or 'nothing changed'}; {counted(source.pictures, 'picture')}"


def _updated(index: Index, done: Iterable[Synced], problems: Iterable[str] = ()) -> Updated:
    # Always, as an earlier run may have been killed before it.
    index.optimize()
    snapshot = index.snapshot()
    head = snapshot.head
    spec = spec_at(head.spec, index.location)
    return Updated(index.location, spec, head.generation, snapshot.version, tuple(done), tuple(problems))


def _with_collections(index: Index) -> list[Source]:
    """The sources that can be looked through; imported vectors have no collection."""
    return [source for source in index.head.sources if source.collection]


def _same(one: Source, other: Source) -> bool:
    return (one.collection, one.images) == (other.collection, other.images)


def _require_same(index: Index, source: Source) -> None:
    """Refuses another collection under the name of one that the index has."""
    for each in index.head.sources:
        if each.name == source.name and not _same(each, source):
            held = each.collection or "imported vectors"
            raise ConfigError(
                f"{index.location} holds {held} as its source {each.name!r}, not {source.collection}; add that "
                "under another name (modalloy index add --name), or make another index (--index)."
            )


def _require_collection(source: Source) -> None:
    # Before an encoder is loaded or an index made; patterns and what is wrong inside are found by the reader.
    if "{" not in source.collection and source.collection != DEMO and not os.path.exists(source.collection):
        raise DataError(f"{source.collection} isn't there; check the path.")


def _pictures(index: Index, source: Source) -> int:
    return count_pictures(index.snapshot(), [Condition("source", "=", source.name)])
