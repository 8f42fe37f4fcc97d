"""Indexes by their locations."""

from pathlib import Path
from typing import TYPE_CHECKING

from modalloy.index.base import Head, Index

if TYPE_CHECKING:
    from modalloy.index.lance import LanceIndex


def open_index(location: str | Path) -> Index:
    """The index in a folder, or behind a URI.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    from modalloy.index.lance import LanceIndex

    return LanceIndex.open(location)


def create_index(location: str | Path, head: Head) -> "LanceIndex":
    """An index without rows, in a folder or behind a URI.

    Raises:
        ConfigError: there is one already.
    """
    from modalloy.index.lance import LanceIndex

    return LanceIndex.create(location, head)
