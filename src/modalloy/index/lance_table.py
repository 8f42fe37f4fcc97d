"""What LanceDB's tables leave to those who use them."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lancedb import DBConnection
    from lancedb.table import Table

_MARGIN = timedelta(minutes=1)


def is_made(database: "DBConnection", table: str) -> bool:
    """Whether a table is there; a creation that was killed leaves a folder without any version."""
    try:
        database.open_table(table)
    except ValueError as error:
        if "was not found" in str(error):
            return False
        raise
    return True


def age_kept(table: "Table", readers: timedelta) -> timedelta:
    """The age of the oldest version that somebody may be reading.

    Args:
        table: which.
        readers: how long somebody may read what was once the newest version; it may have been that for long before.
    """
    ages = [datetime.now() - each["timestamp"] for each in table.list_versions()]
    return min((age for age in ages if age > readers), default=readers) + _MARGIN


@contextmanager
def readable(table: "Table", every_file: bool = False) -> Iterator[None]:
    """Takes back what is written within if it can't be read.

    LanceDB 0.40 doesn't notice if a disk gets full, or a quota is used up, at the very end of a file, without which
    nothing of the file can be read.

    Args:
        table: what is written to.
        every_file: whether all of its files are new, rather than that of its last row.

    Raises:
        OSError: there is no room.
        RuntimeError: what was there before can't be read either, so that it is damaged.
    """
    before = table.version
    yield
    if table.version == before:
        return
    try:
        _read(table, every_file)
    except (RuntimeError, ValueError, OSError) as error:
        table.checkout(before)
        _read(table, every_file)
        table.restore()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _read(table: "Table", every_file: bool) -> None:
    if every_file:
        for _ in table.search().select(["id"]).to_batches():
            pass
    elif rows := table.count_rows():
        table.take_offsets([rows - 1]).select(["id"]).to_arrow()
