"""Paths that name many files at once, in the way of webdataset: `shards/{000..999}.tar`, `coco_{val,test}.json`."""

import math
import re
from itertools import product
from pathlib import Path

from modalloy.errors import DataError

MAX_FILES = 100_000

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")


def has_braces(path: str | Path) -> bool:
    """Whether a path is a pattern, and no file's own name."""
    return _BRACES.search(str(path)) is not None and not Path(path).exists()


def expand_braces(pattern: str | Path) -> tuple[Path, list[Path]]:
    """The folder that a pattern's files are in, and the files.

    >>> folder, files = expand_braces("shards/{08..10}.tar")
    >>> folder.as_posix(), [file.name for file in files]
    ('shards', ['08.tar', '09.tar', '10.tar'])

    Raises:
        DataError: braces hold neither a range nor a list, or they name too many files.
    """
    # Split by a pattern with one group: outside, inside, outside, ..., outside.
    parts = _BRACES.split(str(pattern))
    choices = [_choices(part, pattern) if row % 2 else [part] for row, part in enumerate(parts)]
    if (count := math.prod(map(len, choices))) > MAX_FILES:
        raise DataError(f"{pattern} names {count:,} files; at most {MAX_FILES:,} are allowed.")
    return Path(f"{parts[0]}_").parent, [Path("".join(chosen)) for chosen in product(*choices)]


def _choices(inside: str, pattern: str | Path) -> list[str]:
    if numbers := _RANGE.fullmatch(inside):
        first, last = numbers.groups()
        count = int(last) - int(first) + 1
        if count < 1 or count > MAX_FILES:
            raise DataError(f"{pattern}: {{{inside}}} names {max(count, 0):,} files; 1 to {MAX_FILES:,} are allowed.")
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    if "," not in inside:
        raise DataError(f"{pattern}: braces hold a range such as {{000..012}} or a list such as {{val,test}}.")
    return inside.split(",")
