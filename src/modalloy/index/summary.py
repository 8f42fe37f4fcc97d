"""What an index holds, in numbers, and its rows for people to look through."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modalloy.index.base import Snapshot
from modalloy.index.condition import Condition
from modalloy.index.encoder_spec import spec_at
from modalloy.index.schema import metadata_columns, metadata_of

_COLUMNS = ("id", "path", "source", "split", "width", "height", "captions")
_PICTURES = Condition("modality", "=", "image")


def summary_of(snapshot: Snapshot, location: str) -> dict[str, Any]:
    """What an index is and holds.

    Args:
        snapshot: of the index.
        location: where it is: a folder or a URI.

    Returns:
        The encoder, generation, version, numbers of pictures and captions, sources with their numbers, fields with
        their kinds, and the folder's bytes on disk (None for a URI).
    """
    pictures = {source.name: 0 for source in snapshot.head.sources}
    for batch in snapshot.scan(["source"], [_PICTURES]):
        for name, count in Counter(batch["source"].to_pylist()).items():
            pictures[name] = pictures.get(name, 0) + count
    known = {source.name: source for source in snapshot.head.sources}
    return {
        "index": location,
        "encoder": spec_at(snapshot.head.spec, location),
        "dim": snapshot.head.dim,
        "generation": snapshot.head.generation,
        "version": snapshot.version,
        "pictures": count_pictures(snapshot),
        "captions": snapshot.count([Condition("modality", "=", "text")]),
        "sources": [
            {"name": name, "collection": known[name].collection if name in known else None, "pictures": count}
            for name, count in pictures.items()
        ],
        "fields": dict(snapshot.metadata),
        "bytes": _bytes(location),
    }


def count_pictures(snapshot: Snapshot, where: Sequence[Condition] = ()) -> int:
    """The number of pictures for which all conditions hold."""
    return snapshot.count([_PICTURES, *where])


def list_pictures(
    snapshot: Snapshot, where: Sequence[Condition] = (), limit: int | None = 20, offset: int = 0
) -> list[dict[str, Any]]:
    """Some pictures as JSON: id, path, source, split, size, captions and metadata.

    Args:
        snapshot: of the index.
        where: conditions that all must hold.
        limit: how many at most; None for all.
        offset: how many to pass over.

    Raises:
        ConfigError: the index has no such field.
    """
    columns = [*_COLUMNS, *metadata_columns(snapshot.metadata)]
    rows = []
    for batch in snapshot.scan(columns, [_PICTURES, *where], limit, offset):
        for row in batch.to_pylist():
            rows.append({**{name: row[name] for name in _COLUMNS}, "metadata": metadata_of(row, snapshot.metadata)})
    return rows


def _bytes(location: str) -> int | None:
    folder = Path(location)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else None
