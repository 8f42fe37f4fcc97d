"""Opening an index to change it."""

from collections.abc import Iterator
from contextlib import contextmanager

from modalloy.index.base import Index
from modalloy.index.lock import writer_lock
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
