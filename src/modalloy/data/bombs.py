"""Pictures of few pixels that are dear to decode all the same: JPEGs of many scans, and TIFFs of huge tiles."""

import io
import os
import re
import struct
from typing import BinaryIO

MAX_SCANS = 100
"""Each scan of a JPEG goes over all of its pixels, and may have 11 bytes. Cameras make 10; libtiff allows as many."""
MAX_SEGMENTS = 10_000
"""Of a JPEG, tables, notes and scans together."""

_BLOCK = 2**16
# All markers that have a length behind them, and the end.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_START_OF_SCAN, _END = 0xDA, 0xD9
_TILE_WIDTH, _TILE_LENGTH = 322, 323
# As the TIFF standard has them: other types, and repeated tags, Pillow and libtiff understand differently.
_NUMBERS = {3: "H", 4: "I"}


def check_cost(file: BinaryIO | io.BytesIO, max_pixels: int) -> None:
    """Refuses a picture that is dear to decode; its file is left where it was.

    Args:
        file: a picture in any format.
        max_pixels: the most that may be decoded at once.

    Raises:
        ValueError: of what there is too much.
    """
    place = file.tell()
    file.seek(0)
    start = file.read(2)
    if start == b"\xff\xd8":
        _check_segments(file)
    elif start in (b"II", b"MM"):
        _check_tiles(file, "<" if start == b"II" else ">", max_pixels)
    file.seek(place)


def _check_segments(file: BinaryIO | io.BytesIO) -> None:
    scans = 0
    for _ in range(MAX_SEGMENTS):
        # A film behind the end, as telephones leave it there, isn't looked at.
        if (marker := _next_marker(file)) in (None, _END):
            return
        scans += marker == _START_OF_SCAN
        if scans > MAX_SCANS:
            raise ValueError(f"it has more than {MAX_SCANS} scans")
        file.seek(max(0, int.from_bytes(file.read(2)) - 2), os.SEEK_CUR)
    raise ValueError(f"it has more than {MAX_SEGMENTS:,} segments")


def _next_marker(file: BinaryIO | io.BytesIO) -> int | None:
    before = b""
    while block := file.read(_BLOCK):
        content = before + block
        if found := _MARKER.search(content):
            file.seek(found.end() - len(content), os.SEEK_CUR)
            return found[0][1]
        before = block[-1:]
    return None


def _check_tiles(file: BinaryIO | io.BytesIO, order: str, max_pixels: int) -> None:
    """A tile is decoded as a whole, however little of it is in the picture."""

    def read(format: str) -> tuple[int, ...]:
        return struct.unpack(order + format, file.read(struct.calcsize(order + format)))

    big = read("H") == (43,)
    (directory,) = read("4xQ") if big else read("I")
    file.seek(directory)
    (entries,) = read("Q" if big else "H")
    sides = {_TILE_WIDTH: 1, _TILE_LENGTH: 1}
    for _ in range(entries):
        tag, kind, count = read("HHQ" if big else "HHI")
        value = file.read(8 if big else 4)
        if tag in sides:
            if kind not in _NUMBERS or count != 1:
                raise ValueError("the size of its tiles isn't a number")
            sides[tag] = max(sides[tag], *struct.unpack_from(order + _NUMBERS[kind], value))
    width, length = sides.values()
    if width * length > max_pixels:
        raise ValueError(f"it has tiles of {width} x {length} pixels, of which {max_pixels:,} are allowed")
