"""What happens to an index on a disk that is full or can't be written to, in a process that has a small disk."""

import ctypes
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from index.index_process import run_stage
from index.small_source import rows_in
from lancedb.background_loop import LOOP

from modalloy.errors import CheckpointError
from modalloy.index import open_index
from modalloy.index.verify import verify_index

_NEW_NAMESPACE = 0x20000
_READ_ONLY, _REMOUNT, _PRIVATE = 1, 32, 0x44000


class CannotMount(Exception):
    """This takes rights that not everybody has."""


def _mount(folder: Path | str, flags: int, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options.encode()):
        raise CannotMount(os.strerror(ctypes.get_errno()))


def _become_alone() -> None:
    """From now on what this process mounts isn't seen by others."""
    if ctypes.CDLL(None).unshare(_NEW_NAMESPACE):
        raise CannotMount("no namespace of its own")
    # A namespace is one of a thread and of those that it starts.
    LOOP._start()
    _mount("/", _PRIVATE)


def _mount_a_disk(folder: Path, kilobytes: int) -> None:
    folder.mkdir()
    _mount(folder, 0, f"size={kilobytes}k")


@contextmanager
def short_files(most: int) -> Iterator[None]:
    """Files can't become longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _fails_and_stays_whole(work: Callable[[], None], location: Path, after: dict) -> bool:
    try:
        work()
    except (CheckpointError, OSError) as error:
        assert isinstance(error, OSError) or "make room" in str(error), error
        try:
            index = open_index(location)
        except CheckpointError as missing:
            assert "holds no index" in str(missing) or "no such folder" in str(missing), missing
        else:
            assert all(after[id] == row for id, row in rows_in(index).items())
            assert verify_index(index).findings == ()
        return True
    return False


def build_where_there_is_little_room(tells: Connection, how: str, root: Path, after: dict) -> None:
    """Builds an index with ever more room, and tells how many times that failed."""
    failures = 0
    try:
        if how == "disk":
            _become_alone()
        for number, kilobytes in enumerate(range(12, 120, 12)):
            location = root / f"{how}-{number}" / "index"
            if how == "disk":
                _mount_a_disk(location.parent, kilobytes)
                failed = _fails_and_stays_whole(lambda at=location: run_stage("build", root, at), location, after)
                _mount(location.parent, _REMOUNT, "size=64m")
            else:
                with short_files(100 * kilobytes):
                    failed = _fails_and_stays_whole(lambda at=location: run_stage("build", root, at), location, after)
            failures += failed
            run_stage("build", root, location)
            assert rows_in(open_index(location)) == after
    except CannotMount as error:
        tells.send(str(error))
    tells.send(failures)


def change_what_is_read_only(tells: Connection, root: Path) -> None:
    """Reads an index on a read-only disk, and tells what each attempt to change it gives."""
    try:
        _become_alone()
        _mount_a_disk(root / "disk", 8192)
        run_stage("build", root, root / "disk" / "index")
        before = rows_in(open_index(root / "disk" / "index"))
        _mount(root / "disk", _REMOUNT | _READ_ONLY)
    except CannotMount as error:
        tells.send(str(error))
        return
    messages = []
    for stage in ("add", "update", "remove", "upgrade", "optimize"):
        try:
            run_stage(stage, root, root / "disk" / "index")
        except (CheckpointError, OSError) as error:
            messages.append(str(error))
    assert rows_in(open_index(root / "disk" / "index")) == before
    assert verify_index(open_index(root / "disk" / "index")).findings == ()
    tells.send(messages)
