"""Only one process at a time writes into a folder of features."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from modalloy.errors import FeatureError

# A process that was forked from one that was killed holds its lock until it notices, which takes some seconds.
_WAIT_SECONDS = 10.0


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the lock of `folder`; the lock's file stays beside it, since removing it could let in two.

    Raises:
        FeatureError: another process holds it.
    """
    # One folder has one lock, by whatever path it is reached.
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=_WAIT_SECONDS)
    except Timeout:
        raise FeatureError(
            f"Another process is writing to {folder}; wait for its end (then nothing is left to do), or stop it."
        ) from None
    try:
        yield
    finally:
        lock.release()
