"""How long the steps of an answer take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def timed(took: dict[str, float], step: str) -> Iterator[None]:
    """Adds the milliseconds that its block takes to those of a step.

    >>> took = {}
    >>> with timed(took, "search"):
    ...     pass
    >>> took["search"] >= 0
    True
    """
    start = time.perf_counter()
    try:
        yield
    finally:
        took[step] = took.get(step, 0.0) + (time.perf_counter() - start) * 1000
