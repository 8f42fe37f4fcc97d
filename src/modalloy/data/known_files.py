"""Checksums of pictures' files that needn't be read again, since their size and time of modification are the same."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from modalloy.data.images import check_image, sha256_of_image
from modalloy.data.tar_members import split_tar_path, tar_index
from modalloy.errors import ImageError

_TICK_NS = 20_000_000
"""The coarsest steps in which Linux counts the times of files, with room."""


class FileState(NamedTuple):
    """A file's content in short, and by what a change of it is noticed."""

    bytes: int | None
    """Its size; of a picture in a tar, the member's. None, like the time, of a file that wasn't looked at."""
    modified_ns: int | None
    """When it was last modified, in ns since 1970; of a picture in a tar, the tar."""
    sha256: str
    """Of its bytes, as 64 hexadecimal digits."""


class KnownFiles:
    """The states of a collection's pictures when they were last looked at.

    Args:
        states: by path, relative to the collection's root; without any, every byte is read.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (4, 4)).save(root / "cat.png")
    >>> state = KnownFiles().look(root, "cat.png")
    >>> KnownFiles({"cat.png": state}).look(root, "cat.png") is state
    True
    """

    def __init__(self, states: Mapping[str, FileState] | None = None) -> None:
        self._states = dict(states or {})

    def look(self, root: Path, path: str) -> FileState:
        """A picture's state now; its header is checked and its bytes are read only where it isn't the known one.

        Raises:
            ImageError: the file is missing, can't be read, or isn't a picture (named).
        """
        file = root / path
        try:
            size, modified_ns = _size_and_time(file)
            known = self._states.get(path)
            if known is not None and known[:2] == (size, modified_ns):
                return known
            # Modified again within the same tick the file would look unchanged for ever.
            if 0 <= (age := time.time_ns() - modified_ns) < _TICK_NS:
                time.sleep((_TICK_NS - age) / 1e9)
            check_image(file)
            state = FileState(size, modified_ns, sha256_of_image(file))
        except OSError as error:
            check_image(file)
            raise ImageError(f"{file} can't be read ({error.strerror}).") from None
        self._states[path] = state
        return state


def _size_and_time(file: Path) -> tuple[int, int]:
    if member := split_tar_path(file):
        tar, name = member
        _, size = tar_index(tar).members.get(name, (0, 0))
        return size, tar.stat().st_mtime_ns
    status = file.stat()
    return status.st_size, status.st_mtime_ns
