"""Indexes by their locations."""

from pathlib import Path

from modalloy.index.base import Head, Index
from modalloy.index.qdrant_config import is_qdrant


def open_index(location: str | Path) -> Index:
    """The index in a folder, in object storage ("s3://bucket/index") or in a cluster ("qdrant://host:6333/pictures").

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if is_qdrant(str(location)):
        from modalloy.index.qdrant import QdrantIndex

        return QdrantIndex.open(str(location))
    from modalloy.index.lance import LanceIndex

    return LanceIndex.open(location)


def create_index(location: str | Path, head: Head) -> Index:
    """An index without rows, in a place that `open_index` takes.

    Raises:
        ConfigError: there is one already.
    """
    if is_qdrant(str(location)):
        from modalloy.index.qdrant import QdrantIndex

        return QdrantIndex.create(str(location), head)
    from modalloy.index.lance import LanceIndex

    return LanceIndex.create(location, head)
