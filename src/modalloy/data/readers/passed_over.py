"""Counts the files of a folder of pictures that aren't read, though someone may think that they are."""

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

from modalloy.data.images import SUFFIXES

_ALIKE = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".jfif", ".svg", ".ico", ".tga", ".psd"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
    *(".mov", ".mp4", ".m4v", ".avi", ".mkv", ".webm"),
)
_SIDECARS = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".token", ".xml", ".xmp", ".aae", ".md", ".html", ".db", ".ini")
_MANY = 10


def passed_over(paths: Iterable[str]) -> dict[str, int]:
    """How many files have each suffix that looks like a picture's or film's or is frequent beside pictures, most first.

    What accompanies pictures (captions, lists, a system's own files) isn't counted.

    >>> passed_over(["a.jpg", "a.txt", "b.HEIC", "film/c.mov", "film/d.mov", "film/notes.odt"])
    {'.mov': 2, '.heic': 1}

    Args:
        paths: relative to the folder.
    """
    files = [PurePath(path) for path in paths]
    beside = {file.parent for file in files if file.suffix.lower() in SUFFIXES}
    # Escaped, as a name can be anything.
    suffixes = ((repr(file.suffix.lower())[1:-1], file.parent) for file in files)
    counts = Counter(
        suffix
        for suffix, folder in suffixes
        if suffix in _ALIKE or (folder in beside and suffix not in (*SUFFIXES, *_SIDECARS))
    )
    return {suffix: count for suffix, count in counts.most_common() if suffix in _ALIKE or count >= _MANY}


def passed_over_line(counts: dict[str, int]) -> str:
    """The same for people.

    >>> passed_over_line({".heic": 1200, ".mov": 3})
    '1,200 .heic, 3 .mov (not read; convert pictures to JPEG)'
    """
    told = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in counts.items())
    return f"{told} (not read; convert pictures to JPEG)"
