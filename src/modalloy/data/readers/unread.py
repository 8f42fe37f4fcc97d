"""Finds what lies in a collection's folder and isn't read."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modalloy.counted import counted
from modalloy.data.images import SUFFIXES
from modalloy.data.readers.folder import visible_files
from modalloy.data.readers.passed_over import passed_over, passed_over_line
from modalloy.data.readers.pick import listed_in

_NAMED = 3


@dataclass(frozen=True)
class Unread:
    """What lies in a collection's folder and isn't read."""

    folder: str
    """Where that is."""
    suffixes: Mapping[str, int] = field(default_factory=dict)
    """How many files were passed over for their suffix, by suffix."""
    lists: tuple[str, ...] = ()
    """The files of the folder that say which pictures are read; without any, all are."""
    unlisted: tuple[str, ...] = field(default=(), repr=False)
    """The pictures that they don't name, relative to the folder."""

    def lines(self) -> list[str]:
        """The same for people."""
        lines = []
        if self.suffixes:
            lines.append(f"passed over in {self.folder}: {passed_over_line({**self.suffixes})}")
        if self.unlisted:
            lists = ", ".join(self.lists[:_NAMED]) + (", ..." if len(self.lists) > _NAMED else "")
            names = ", ".join(self.unlisted[:_NAMED]) + (", ..." if len(self.unlisted) > _NAMED else "")
            lines.append(
                f"not listed in {lists}, so left out: {counted(len(self.unlisted), 'picture')} of {self.folder} "
                f"({names}); list them too, or move the list elsewhere to have all pictures read"
            )
        return lines


def unread_in(path: str | Path, images: str | Path | None = None) -> Unread:
    """Looks through a collection's folder; of one that a file or `images` names exactly, nothing is unread.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("a.png", "b.png", "c.heic"):
    ...     (folder / name).touch()
    >>> _ = (folder / "metadata.csv").write_text("path,caption\\na.png,A cat.\\n")
    >>> found = unread_in(folder)
    >>> found.suffixes, found.unlisted
    ({'.heic': 1}, ('b.png',))

    Args:
        path: what `read_collection` takes.
        images: the same.

    Raises:
        DataError: a list can't be read.
    """
    folder = Path(path)
    if images is not None or not folder.is_dir():
        return Unread(str(path))
    lists, listed = listed_in(folder)
    root = os.path.realpath(folder)
    others = [each for each in visible_files(folder) if os.path.join(root, each) not in listed]
    pictures = sorted(each for each in others if each.lower().endswith(SUFFIXES)) if lists else ()
    return Unread(
        str(path),
        passed_over(others),
        tuple(map(str, lists)),
        # Escaped, as a name can be anything.
        tuple(repr(each)[1:-1] for each in pictures),
    )
