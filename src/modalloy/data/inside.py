"""The files of one folder, and none outside it, whatever a path says and wherever links lead."""

import io
import os
import stat
from pathlib import Path
from typing import NamedTuple

from modalloy.data.images import OpenFile
from modalloy.data.item import check_path
from modalloy.data.tar_members import read_member, split_tar_path
from modalloy.errors import DataError, ImageError

# A pipe that took the file's place would be waited for for ever.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_BINARY"))


class Opened(NamedTuple):
    """A file that is open, to be closed by whoever has it."""

    file: OpenFile
    """At its start."""
    state: tuple[str, int, int, int]
    """Where it really is, its size, and when it was modified and changed in ns; another one of another content.

    Anybody can say when it was modified; when it was changed in any way, only the system (on POSIX)."""


class Inside:
    """Finds and opens the files of a folder. Where its folders really are is looked up once, so make one for a moment.

    >>> Inside("/pictures").real("sub/../../etc/passwd")
    Traceback (most recent call last):
    modalloy.errors.ImageError: the path 'sub/../../etc/passwd' isn't inside the image folder; ...

    Args:
        root: the folder; it may itself be reached by a link.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = Path(os.path.realpath(root))
        self._real: dict[str, str] = {}

    def real(self, path: str) -> Path:
        """Where a file really is, whether or not it is there.

        Args:
            path: relative to the folder, with "/"; TAR/MEMBER for a picture in a tar.

        Raises:
            ImageError: that isn't in the folder.
        """
        try:
            check_path(path)
        except DataError as error:
            raise ImageError(str(error)) from None
        folder, _, name = path.rpartition("/")
        if folder not in self._real:
            self._real[folder] = os.path.realpath(self._root / folder)
        real = os.path.join(self._real[folder], name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        if not Path(real).is_relative_to(self._root):
            raise ImageError(
                f"{self._root / path} is a link that leads out of {self._root}; copy the picture, or add the folder "
                "that it is in."
            )
        return Path(real)

    def holds(self, path: str) -> bool:
        """Whether a path, as `real` takes it, leads to a file in the folder, whether or not it is there."""
        try:
            self.real(path)
        except ImageError:
            return False
        return True

    def open(self, path: str) -> Opened:
        """Opens a file, or a tar's member.

        Args:
            path: as `real` takes it.

        Raises:
            ImageError: it isn't in the folder, isn't there, or isn't a plain file.
        """
        real = self.real(path)
        try:
            member = split_tar_path(real)
            file = os.fdopen(os.open(real if member is None else member[0], _FLAGS), "rb")
        # A name that is too long, as well.
        except (OSError, ValueError) as error:
            raise ImageError(f"{real} can't be read ({getattr(error, 'strerror', None) or error}).") from None
        status = os.fstat(file.fileno())
        state = (str(real), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if not stat.S_ISREG(status.st_mode):
            file.close()
            raise ImageError(f"{real} is a folder, device or pipe, not a picture.")
        if member is None:
            return Opened(file, state)
        file.close()
        return Opened(io.BytesIO(read_member(*member)), state)
