"""The write side of a feature store: shards in any order, by any process, each atomically; the manifest last."""

import errno
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from safetensors import SafetensorError

from modalloy.encoders.base import Fingerprint
from modalloy.errors import ConfigError, FeatureError
from modalloy.features.shard import FileRecord, Reject, Shard, ShardLabel, StoredShard, read_shard, write_shard
from modalloy.features.store import FeatureStore
from modalloy.features.store_manifest import Description, StoreManifest, require_fingerprint
from modalloy.files import atomic_path, remove_partial_files, sha256_of


def shard_ranges(rows: int, shard_size: int) -> list[range]:
    """The rows of each shard.

    >>> shard_ranges(5, 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    if shard_size < 1:
        raise ConfigError(f"shard_size must be at least 1, got {shard_size}.")
    return [range(start, min(start + shard_size, rows)) for start in range(0, rows, shard_size)]


def finished_store(folder: Path, description: Description) -> FeatureStore | None:
    """The store in `folder` if it is whole and is what `description` says; None if there is work to do.

    Raises:
        FeatureError: the folder holds another encoder's features, which aren't overwritten.
    """
    try:
        manifest = StoreManifest.load(folder)
    except FeatureError:
        return None
    require_fingerprint(description.fingerprint, manifest.description.fingerprint, folder)
    if manifest.description != description or manifest.missing_or_resized(folder):
        return None
    return FeatureStore.open(folder)


class ShardWriter:
    """Writes shards into a folder; several processes may do so at once, as long as each shard is one's.

    Args:
        items: for each shard the digest of what its rows are made from.
    """

    def __init__(self, folder: Path, fingerprint: Fingerprint, items: Sequence[str]) -> None:
        self.folder = folder
        self._fingerprint = fingerprint
        self._items = items

    def write(self, index: int, shard: Shard, rejects: Sequence[Reject]) -> FileRecord:
        """Writes one shard.

        Raises:
            FeatureError: the disk is full.
        """
        label = ShardLabel(self._fingerprint, self._items[index], tuple(rejects))
        with _explained_full_disk(self.folder):
            return write_shard(self.path(index), shard, label)

    def stored(self, index: int) -> StoredShard | None:
        """The shard on disk, if there is one and its label says that it is made from its items.

        Raises:
            FeatureError: another encoder made it.
        """
        try:
            stored = read_shard(self.path(index))
        except FeatureError:
            return None
        require_fingerprint(self._fingerprint, stored.label.fingerprint, self.folder)
        return stored if stored.label.items == self._items[index] else None

    def path(self, index: int) -> Path:
        """Where a shard is, or will be."""
        return self.folder / f"shard-{index:05d}.safetensors"


class StoreWriter:
    """Fills a folder with shards, starting from those that an earlier run left whole.

    Args:
        items: for each shard the digest of what its rows are made from; a shard on disk with another digest,
            or with contents that don't match its own checksum, is made again.

    Raises:
        FeatureError: the folder holds shards of another encoder, which aren't overwritten.
    """

    def __init__(
        self,
        folder: Path,
        description: Description,
        ids: Sequence[str],
        shard_size: int,
        items: Sequence[str],
    ) -> None:
        self._folder = folder
        self._description = description
        self._ids = ids
        self._shard_size = shard_size
        self._shards = ShardWriter(folder, description.fingerprint, items)
        self._count = len(items)
        self._records: dict[int, FileRecord] = {}
        self._rejects: dict[int, tuple[Reject, ...]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder)
        for index in range(self._count):
            stored = self._shards.stored(index)
            if stored is not None and stored.is_intact():
                self._take_over(index, stored)
        StoreManifest.remove(folder)

    @property
    def missing(self) -> list[int]:
        """The shards still to be written."""
        return [index for index in range(self._count) if index not in self._records]

    @property
    def rejects(self) -> list[Reject]:
        """The rejected items of the shards that there are."""
        return [reject for index in sorted(self._rejects) for reject in self._rejects[index]]

    def make_again(self, indices: Iterable[int]) -> None:
        """Counts shards as missing; each stays until its new one replaces it."""
        for index in indices:
            del self._records[index], self._rejects[index]

    def write(self, index: int, shard: Shard, rejects: Sequence[Reject]) -> None:
        """Writes one shard."""
        self._records[index] = self._shards.write(index, shard, rejects)
        self._rejects[index] = tuple(rejects)

    def take_over(self) -> None:
        """Takes over the shards that this run's `ShardWriter`s have written, as their labels say."""
        for index in self.missing:
            stored = self._shards.stored(index)
            if stored is not None:
                self._take_over(index, stored)

    def finish(self) -> FeatureStore:
        """Writes the ids, the rejects and at last the manifest, and opens the store."""
        if self.missing:
            raise FeatureError(f"{self._folder} can't be finished: shards {self.missing} haven't been written.")
        shards = tuple(self._records[index] for index in range(self._count))
        rejects = chain.from_iterable(self._rejects[index] for index in range(self._count))
        self._remove_surplus({record.file for record in shards})
        with _explained_full_disk(self._folder):
            manifest = StoreManifest(
                description=self._description,
                rows=len(self._ids),
                shard_size=self._shard_size,
                ids=self._write_lines("ids.jsonl", map(json.dumps, self._ids)),
                rejects=self._write_lines("rejects.jsonl", (json.dumps(asdict(reject)) for reject in rejects)),
                shards=shards,
            )
            manifest.save(self._folder)
        return FeatureStore.open(self._folder)

    def _take_over(self, index: int, stored: StoredShard) -> None:
        path, rows = self._shards.path(index), stored.shard.valid.shape[0]
        self._records[index] = FileRecord(path.name, rows, path.stat().st_size, stored.sha256)
        self._rejects[index] = stored.label.rejects

    def _write_lines(self, name: str, lines: Iterable[str]) -> FileRecord:
        path, count = self._folder / name, 0
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            for count, line in enumerate(lines, start=1):  # noqa: B007
                file.write(line + "\n")
        return FileRecord(name, count, path.stat().st_size, sha256_of(path))

    def _remove_surplus(self, kept: set[str]) -> None:
        for path in self._folder.glob("shard-*.safetensors"):
            if path.name not in kept:
                path.unlink()


@contextmanager
def _explained_full_disk(folder: Path) -> Iterator[None]:
    """Turns "no space left" into what to do about it; the file being written hasn't replaced an older one."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        # safetensors tells the operating system's number in its message only.
        if not full and not any(f"os error {number})" in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            raise
        raise FeatureError(
            f"The disk is full ({shutil.disk_usage(folder).free / 1e9:.1f} GB free at {folder}). Make room and run the "
            "same step again: what is stored is kept, and it goes on from there (`modalloy extract --dry-run` tells "
            "how much it takes)."
        ) from error
