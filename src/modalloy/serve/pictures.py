"""Originals by their ids: only files of the index's sources, only pictures, and only what was indexed.

No path comes from a request. The one in the index is checked as if it did, since whoever can write an index mustn't
thereby read any file.
"""

import hashlib
import io
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalloy.data.images import OpenFile, decode_image, image_format
from modalloy.data.item import check_path
from modalloy.data.tar_members import read_member, split_tar_path
from modalloy.errors import DataError, ImageError
from modalloy.serve.errors import Refusal

COLUMNS = ("id", "source", "path", "sha256")
"""What must be known of a picture."""
_MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
_CHUNK = 2**18
_KNOWN = 4096
_JPEG_QUALITY = 92


@dataclass(frozen=True, slots=True)
class Original:
    """A picture's file, open and checked to be the indexed one."""

    file: OpenFile
    """To be closed, or read to its end by `chunks`."""
    size: int
    """In bytes."""
    media_type: str
    """By what it is, not by what it is called."""
    etag: str
    """Changes with the bytes."""

    def chunks(self) -> Iterator[bytes]:
        """Its bytes; it is closed at the end."""
        with self.file:
            # A file that grows meanwhile mustn't outgrow the size that was announced.
            left = self.size
            while left and (chunk := self.file.read(min(left, _CHUNK))):
                yield chunk
                left -= len(chunk)


@dataclass(frozen=True, slots=True)
class _Seen:
    sha256: str
    format: str


class Originals:
    """Opens the files of an index's pictures.

    Args:
        max_pixels: those with more are refused.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._seen: dict[tuple, _Seen] = {}
        self._lock, self._converting = threading.Lock(), threading.Lock()

    def open(self, row: Mapping[str, Any], roots: Mapping[str, str]) -> Original:
        """The original of a picture.

        Args:
            row: the index's, with `COLUMNS`.
            roots: the folder of each source, by its name.

        Raises:
            Refusal: 404, if the file isn't there, isn't inside its source's folder, or isn't the indexed one.
        """
        try:
            file, key = _open(row["path"], roots[row["source"] or ""])
        except (KeyError, OSError, DataError, ValueError):
            raise Refusal(404, f"the file of {row['id']!r} isn't where it was when it was indexed.") from None
        try:
            return self._checked(file, key, row)
        except ImageError:
            file.close()
            raise Refusal(404, f"the file of {row['id']!r} isn't a picture that can be shown.") from None
        except BaseException:
            file.close()
            raise

    def _checked(self, file: OpenFile, key: tuple, row: Mapping[str, Any]) -> Original:
        seen = self._look(file, key, row["id"])
        if seen.sha256 != row["sha256"]:
            raise Refusal(404, f"the file of {row['id']!r} has changed since it was indexed; update the index.")
        media_type, etag = _MEDIA_TYPES.get(seen.format), seen.sha256
        if media_type is None:
            # Browsers don't show every format. One at a time, for the memory.
            with self._converting:
                file = _as_jpeg(file, row["id"], self._max_pixels)
            media_type, etag = "image/jpeg", f"{etag}-jpeg"
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        return Original(file, size, media_type, f'"{etag}"')

    def _look(self, file: OpenFile, key: tuple, id: str) -> _Seen:
        with self._lock:
            seen = self._seen.get(key)
        if seen is None:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            file.seek(0)
            seen = _Seen(sha256, image_format(file, id, self._max_pixels))
            with self._lock:
                while len(self._seen) >= _KNOWN:
                    self._seen.pop(next(iter(self._seen)))
                self._seen[key] = seen
        file.seek(0)
        return seen


def _open(path: str, root: str) -> tuple[OpenFile, tuple]:
    """The file at a path in a root, and what changes when it does."""
    check_path(path)
    base = Path(root).resolve(strict=True)
    member = split_tar_path(base / path)
    found = (member[0] if member else base / path).resolve(strict=True)
    if not found.is_relative_to(base):
        raise DataError("the file isn't inside its source's folder.")
    # A pipe that took the file's place would be waited for for ever.
    flags = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_BINARY"))
    file = os.fdopen(os.open(found, os.O_RDONLY | flags), "rb")
    status = os.fstat(file.fileno())
    key = (str(found), member and member[1], status.st_size, status.st_mtime_ns)
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise DataError("it isn't a file.")
    if member is None:
        return file, key
    file.close()
    return io.BytesIO(read_member(found, member[1])), key


def _as_jpeg(file: OpenFile, id: str, max_pixels: int) -> OpenFile:
    with file:
        picture = decode_image(file, id, max_pixels)
    converted = io.BytesIO()
    picture.save(converted, "JPEG", quality=_JPEG_QUALITY)
    return converted
