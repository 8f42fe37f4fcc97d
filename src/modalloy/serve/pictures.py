"""Originals by their ids: only files of the index's sources, only pictures, and only what was indexed."""

import io
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from modalloy.data.images import OpenFile, decode_image, image_format
from modalloy.data.inside import Opened
from modalloy.errors import ImageError
from modalloy.index.picture_files import FILE, PictureFiles, sha256_of_file
from modalloy.serve.errors import Refusal

COLUMNS = ("id", *FILE)
"""What must be known of a picture."""
_MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
_CHUNK = 2**18
_KNOWN = 4096
_JPEG_QUALITY = 92


@dataclass(frozen=True, slots=True)
class Original:
    """A picture's file, open and checked to be the indexed one."""

    file: OpenFile
    """To be closed, which `OriginalResponse` does."""
    size: int
    """In bytes."""
    media_type: str
    """By what it is, not by what it is called."""
    etag: str
    """Changes with the bytes."""

    def chunks(self) -> Iterator[bytes]:
        """Its bytes."""
        # A file that grows meanwhile mustn't outgrow the size that was announced.
        left = self.size
        while left and (chunk := self.file.read(min(left, _CHUNK))):
            yield chunk
            left -= len(chunk)


class OriginalResponse(StreamingResponse):
    """Sends an original, and closes its file in any case.

    A client may be gone before the first byte is read, so that reading it can't be what closes it.

    Args:
        original: what is sent.
        headers: further headers.
    """

    def __init__(self, original: Original, headers: Mapping[str, str]) -> None:
        sized = {**headers, "Content-Length": str(original.size)}
        super().__init__(original.chunks(), media_type=original.media_type, headers=sized)
        self._file = original.file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        with self._file:
            await super().__call__(scope, receive, send)


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
        self._seen: dict[tuple[str, int, int, int], _Seen] = {}
        self._lock, self._converting = threading.Lock(), threading.Lock()

    def open(self, row: Mapping[str, Any], files: PictureFiles) -> Original:
        """The original of a picture.

        Args:
            row: the index's, with `COLUMNS`.
            files: of the index.

        Raises:
            Refusal: 404, if the file isn't there, isn't inside its source's folder, or isn't the indexed one.
        """
        try:
            opened = files.open(row)
        except ImageError:
            raise Refusal(404, f"the file of {row['id']!r} isn't where it was when it was indexed.") from None
        try:
            return self._checked(opened, row)
        except ImageError:
            opened.file.close()
            raise Refusal(404, f"the file of {row['id']!r} isn't a picture that can be shown.") from None
        except BaseException:
            opened.file.close()
            raise

    def _checked(self, opened: Opened, row: Mapping[str, Any]) -> Original:
        file, seen = opened.file, self._look(opened, row["id"])
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

    def _look(self, opened: Opened, id: str) -> _Seen:
        with self._lock:
            seen = self._seen.get(opened.state)
        if seen is None:
            seen = _Seen(sha256_of_file(opened), image_format(opened.file, id, self._max_pixels))
            with self._lock:
                while len(self._seen) >= _KNOWN:
                    self._seen.pop(next(iter(self._seen)))
                self._seen[opened.state] = seen
        opened.file.seek(0)
        return seen


def _as_jpeg(file: OpenFile, id: str, max_pixels: int) -> OpenFile:
    with file:
        picture = decode_image(file, id, max_pixels)
    converted = io.BytesIO()
    picture.save(converted, "JPEG", quality=_JPEG_QUALITY)
    return converted
