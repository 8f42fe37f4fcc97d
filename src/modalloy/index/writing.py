"""Opening an index to change it, or making one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modalloy.errors import CheckpointError
from modalloy.index.base import Index
from modalloy.index.lock import is_uri, writer_lock
from modalloy.index.opening import open_index


@contextmanager
def index_to_change(location: str) -> Iterator[Index]:
    """An index as it is once nobody else on this machine changes it, and nobody does meanwhile.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    # Before the lock, too, which would make the folder.
    open_index(location)
    with writer_lock(location):
        yield open_index(location)


@contextmanager
def lock_to_make(location: str) -> Iterator[None]:
    """The `writer_lock` under which an index may be made; where that fails, a new one without a source goes."""
    was_there = is_uri(location) or Path(location).exists()
    with writer_lock(location):
        try:
            yield
        except Exception:
            # Another process may have filled it while this one waited.
            with suppress(CheckpointError):
                if not was_there and not open_index(location).head.sources:
                    shutil.rmtree(location)
            raise
