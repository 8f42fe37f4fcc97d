"""The write side of a feature store: shards in any order, each atomically; the manifest last."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from modalloy.errors import ConfigError, FeatureError
from modalloy.features.shard import FileRecord, Reject, Shard, ShardLabel, read_shard, write_shard
from modalloy.features.store import FeatureStore
from modalloy.features.store_manifest import Description, StoreManifest, require_fingerprint
from modalloy.files import remove_partial_files, sha256_of, write_text


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
        self._items = items
        self._records: dict[int, FileRecord] = {}
        self._rejects: dict[int, tuple[Reject, ...]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder)
        for index in range(len(items)):
            self._take_over(index)
        StoreManifest.remove(folder)

    @property
    def missing(self) -> list[int]:
        """The shards still to be written."""
        return [index for index in range(len(self._items)) if index not in self._records]

    def write(self, index: int, shard: Shard, rejects: Sequence[Reject]) -> None:
        """Writes one shard."""
        label = ShardLabel(self._description.fingerprint, self._items[index], tuple(rejects))
        self._records[index] = write_shard(self._path(index), shard, label)
        self._rejects[index] = label.rejects

    def finish(self) -> FeatureStore:
        """Writes the ids, the rejects and at last the manifest, and opens the store."""
        if self.missing:
            raise FeatureError(f"{self._folder} can't be finished: shards {self.missing} haven't been written.")
        shards = tuple(self._records[index] for index in range(len(self._items)))
        rejects = list(chain.from_iterable(self._rejects[index] for index in range(len(self._items))))
        self._remove_surplus({record.file for record in shards})
        manifest = StoreManifest(
            description=self._description,
            rows=len(self._ids),
            shard_size=self._shard_size,
            ids=self._write_lines("ids.jsonl", [json.dumps(id) for id in self._ids]),
            rejects=self._write_lines("rejects.jsonl", [json.dumps(asdict(reject)) for reject in rejects]),
            shards=shards,
        )
        manifest.save(self._folder)
        return FeatureStore.open(self._folder)

    def _take_over(self, index: int) -> None:
        path = self._path(index)
        try:
            stored = read_shard(path)
        except FeatureError:
            return
        require_fingerprint(self._description.fingerprint, stored.label.fingerprint, self._folder)
        if stored.label.items == self._items[index] and stored.is_intact():
            rows = stored.shard.valid.shape[0]
            self._records[index] = FileRecord(path.name, rows, path.stat().st_size, stored.sha256)
            self._rejects[index] = stored.label.rejects

    def _write_lines(self, name: str, lines: list[str]) -> FileRecord:
        path = self._folder / name
        write_text(path, "".join(line + "\n" for line in lines))
        return FileRecord(name, len(lines), path.stat().st_size, sha256_of(path))

    def _remove_surplus(self, kept: set[str]) -> None:
        for path in self._folder.glob("shard-*.safetensors"):
            if path.name not in kept:
                path.unlink()

    def _path(self, index: int) -> Path:
        return self._folder / f"shard-{index:05d}.safetensors"
