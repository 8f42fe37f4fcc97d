"""One writer at a time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_NAME = ".writer.lock"
_log = logging.getLogger(__name__)


def is_uri(location: str) -> bool:
    """Whether an index's location is a URI rather than a folder.

    >>> is_uri("s3://bucket/index"), is_uri("index")
    (True, False)
    """
    return "://" in location


@contextmanager
def writer_lock(location: str) -> Iterator[None]:
    """Waits until nobody else on this machine writes to an index in a folder, and keeps others out meanwhile.

    Whoever is killed lets go. An index behind a URI has no such lock: its store orders the commits, and only one
    machine at a time may build it.
    """
    if is_uri(location):
        yield
        return
    folder = Path(location)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("%s is being written to by another process; waiting for it to finish", location)
        while not lock.is_locked:
            # Who fails to make an index takes its folder away.
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                lock.acquire()
    try:
        yield
    finally:
        lock.release()
