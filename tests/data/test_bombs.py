import io
import struct
import zlib

import pytest
from PIL import Image

from modalloy.data import bombs
from modalloy.data.bombs import MAX_SCANS, MAX_SEGMENTS
from modalloy.data.images import MAX_PIXELS, decode_image
from modalloy.errors import ImageError

EMPTY_SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x10\x00"
COMMENT = b"\xff\xfe\x00\x04\xff\xda"
SHORT, LONG, SLONG8 = 3, 4, 17


def jpeg(inside=b"", behind=b"", **options):
    content = io.BytesIO()
    Image.effect_noise((40, 30), 90).save(content, "JPEG", **options)
    return content.getvalue()[:-2] + inside + b"\xff\xd9" + behind


def decoded(content):
    return decode_image(io.BytesIO(content), "it").size


def test_a_jpeg_of_very_many_scans_is_refused():
    scans = jpeg(progressive=True).count(b"\xff\xda")
    assert decoded(jpeg(EMPTY_SCAN * (MAX_SCANS - scans), progressive=True)) == (40, 30)
    with pytest.raises(ImageError, match=r"it can't be decoded \(it has more than 100 scans\)"):
        decoded(jpeg(EMPTY_SCAN * (MAX_SCANS - scans + 1), progressive=True))


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_scans_are_counted_across_what_is_read_at_once(monkeypatch, block):
    monkeypatch.setattr(bombs, "_BLOCK", block)
    assert decoded(jpeg(COMMENT * 2 * MAX_SCANS)) == (40, 30)
    with pytest.raises(ImageError, match="scans"):
        decoded(jpeg(EMPTY_SCAN * MAX_SCANS, progressive=True))


def test_what_only_looks_like_scans_is_none():
    assert decoded(jpeg(COMMENT * 2 * MAX_SCANS, behind=EMPTY_SCAN * 2 * MAX_SCANS)) == (40, 30)


def test_a_jpeg_of_very_many_segments_is_refused():
    with pytest.raises(ImageError, match="10,000 segments"):
        decoded(jpeg(COMMENT * MAX_SEGMENTS))


def tiff(tiles, order="<", big=False):
    """A TIFF of 16 x 16 pixels with such (tag, type, count, value) of its tiles."""
    content = zlib.compress(bytes(16 * 16))
    place = 16 + 8 + 20 * 30
    entries = [(256, LONG, 1, 16), (257, LONG, 1, 16), (258, SHORT, 1, 8), (259, SHORT, 1, 8), (262, SHORT, 1, 1)]
    entries += [(277, SHORT, 1, 1), *tiles, (324, LONG, 1, place), (325, LONG, 1, len(content))]
    rows = b""
    for tag, kind, count, value in entries:
        number = struct.pack(order + {SHORT: "H", LONG: "I", SLONG8: "q"}[kind], value)
        rows += struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, count) + number.ljust(8 if big else 4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    directory = struct.pack(order + ("Q" if big else "H"), len(entries)) + rows
    return (mark + head + directory).ljust(place, b"\0") + content


# Pillow reads large TIFFs in one order alone.
@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_a_tile_is_as_large_as_a_picture_may_be(order, big):
    assert decoded(tiff([(322, SHORT, 1, 16), (323, LONG, 1, 16)], order, big)) == (16, 16)
    with pytest.raises(ImageError, match=f"it has tiles of 16384 x 16384 pixels, of which {MAX_PIXELS:,} are allowed"):
        decoded(tiff([(322, SHORT, 1, 16384), (323, LONG, 1, 16384)], order, big))


@pytest.mark.parametrize(
    "tiles",
    [
        # libtiff takes the first, Pillow the last.
        [(322, LONG, 1, 16384), (322, LONG, 1, 16), (323, LONG, 1, 16384), (323, LONG, 1, 16)],
        [(322, SLONG8, 1, 16384), (323, SLONG8, 1, 16384)],
        [(322, LONG, 2, 16384), (323, LONG, 1, 16384)],
    ],
    ids=["twice", "of a type that Pillow doesn't know", "several"],
)
def test_the_size_of_a_tile_is_not_understood_in_two_ways(tiles):
    with pytest.raises(ImageError, match="tiles"):
        decoded(tiff(tiles, big=True))
