"""Progress bars with an ETA, on stderr, so that stdout stays free for results."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Element = TypeVar("Element")


BAR_FROM = 500
"""Below so many files to look at, a bar would only flicker."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A live progress display: description, bar, count, elapsed time and ETA."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), refresh_per_second=4) as progress:
        yield progress


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Shows on a terminal what takes seconds and can't be counted, until it is done; elsewhere it is silent."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(file=sys.stderr).status(Text(description)):
        yield


def track(
    items: Iterable[Element], description: str, total: int, done: int = 0, shown_from: int = 0
) -> Iterator[Element]:
    """Yields `items` under a progress bar that starts at `done` of `total`; no bar if `total` < `shown_from`.

    >>> list(track([1, 2, 3], "counting", total=3))
    [1, 2, 3]
    """
    if total < shown_from:
        yield from items
        return
    with progress_bar() as progress:
        task = progress.add_task(description, total=total, completed=done)
        for item in items:
            yield item
            progress.advance(task)
