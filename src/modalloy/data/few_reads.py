"""Files that are read in few steps, against pictures of millions of tiny pieces.

Pillow goes over a header in Python, piece by piece: 20 MB of padding in a JPEG, of empty chunks in a PNG, or of
comments in a GIF take it a minute, however small the picture is.
"""

import io
import os
from typing import Any, BinaryIO

from PIL import Image

FREE_READS = 10_000
"""Of any file; a photograph takes some hundreds."""
BYTES_PER_READ = 128
"""Beyond those. PNGs take three reads for each of their chunks, which are rarely smaller than 8 kB."""
_MOST_MORE = 4_000_000


class FewReads:
    """A file that refuses to be read in more steps than an honest picture of its size takes.

    >>> file = FewReads(io.BytesIO(b"abc"))
    >>> file.read(2), file.read()
    (b'ab', b'c')

    Args:
        file: open, at its start.
    """

    def __init__(self, file: BinaryIO | io.BytesIO) -> None:
        self._file = file
        self._most = FREE_READS + file.seek(0, os.SEEK_END) // BYTES_PER_READ
        self._reads = 0
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Some bytes, or all that are left.

        Raises:
            ValueError: there were too many reads already.
        """
        self._reads += 1
        if self._reads > self._most:
            raise ValueError(f"its pieces are so small that reading it takes more than {self._most:,} steps")
        return self._file.read(size)

    def allow_for(self, image: Image.Image) -> None:
        """Allows what its format takes besides: runs of a BMP are read byte by byte, and a TIFF may be row by row."""
        more = {"BMP": 2 * image.width * image.height, "TIFF": image.height}.get(image.format or "", 0)
        self._most += min(more, _MOST_MORE)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
