import io
import zlib
from functools import cache

import pytest
from PIL import Image

from modalloy.data.few_reads import BYTES_PER_READ, FREE_READS, FewReads
from modalloy.data.images import FORMATS, decode_image, image_format, open_image
from modalloy.errors import ImageError

MANY = FREE_READS * 2


@cache
def picture(format, side=40):
    content = io.BytesIO()
    Image.effect_noise((side, side), 90).save(content, format)
    return content.getvalue()


def chunk(kind, content=b""):
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def before(format, part, more):
    """A picture with something more before one of its parts."""
    content = picture(format)
    place = content.index(part)
    return content[:place] + more + content[place:]


# Of its pixels.
FIRST_CHUNK = picture("PNG")[33:41]
BOMBS = {
    "fill bytes": before("JPEG", b"\xff\xe0", b"\xff" * MANY),
    "junk": before("JPEG", b"\xff\xdb", b"\0" * MANY),
    "empty comments": before("JPEG", b"\xff\xe0", b"\xff\xfe\0\x02" * MANY),
    "nothing but fill bytes": b"\xff\xd8" + b"\xff" * MANY,
    "private chunks": before("PNG", FIRST_CHUNK, chunk(b"abCd") * MANY),
    "gif comments": before("GIF", b",\0\0\0\0", b"!\xfe" + b"\x01a" * MANY + b"\0"),
    "gif junk": before("GIF", b",\0\0\0\0", b"\0" * MANY),
}
DECODED_BOMBS = {
    "empty chunks of pixels": before("PNG", FIRST_CHUNK, chunk(b"IDAT") * MANY),
    "chunks behind the pixels": before("PNG", chunk(b"IEND"), chunk(b"abCd") * MANY),
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("read", [image_format, decode_image])
def test_a_header_of_tiny_pieces_is_refused(content, read):
    with pytest.raises(ImageError, match=r"it can't be decoded \(its pieces are so small that reading it takes more"):
        read(io.BytesIO(content), "it")


@pytest.mark.parametrize("content", DECODED_BOMBS.values(), ids=DECODED_BOMBS)
def test_pixels_in_tiny_pieces_are_refused(content):
    assert image_format(io.BytesIO(content), "it") == "PNG"
    with pytest.raises(ImageError, match="its pieces are so small"):
        decode_image(io.BytesIO(content), "it")


@pytest.mark.parametrize("format", FORMATS)
def test_honest_pictures_take_few_reads(format, tmp_path, monkeypatch):
    (tmp_path / "it").write_bytes(picture(format, 1000))
    monkeypatch.setattr("modalloy.data.few_reads.FREE_READS", 100)
    assert open_image(tmp_path / "it").size == (1000, 1000)


def drawing_of_runs(width, height):
    """A BMP in RLE8 whose lines are runs of two pixels, which Pillow reads byte by byte."""
    line = b"\x02\x00\x02\x01" * (width // 4) + b"\0\0"
    pixels, colours = line * height + b"\0\1", bytes(range(256)) * 4
    head = [40, width, height, 1 | 8 << 16, 1, len(pixels), 0, 0, 256, 0]
    header = b"".join(number.to_bytes(4, "little") for number in head)
    start = 14 + len(header) + len(colours)
    sizes = (start + len(pixels)).to_bytes(4, "little") + bytes(4) + start.to_bytes(4, "little")
    return b"BM" + sizes + header + colours + pixels


def tall_in_rows(width, height):
    content = io.BytesIO()
    Image.effect_noise((width, height), 90).save(content, "TIFF", tiffinfo={278: 1})
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "size"),
    [(drawing_of_runs(640, 480), (640, 480)), (tall_in_rows(64, 30_000), (64, 30_000))],
    ids=["a drawing of runs", "a strip a row"],
)
def test_formats_that_are_read_in_small_steps_are_read(content, size):
    assert decode_image(io.BytesIO(content), "it").size == size


def test_a_large_png_may_have_small_chunks():
    head, pixels = picture("PNG", 2000)[:33], zlib.compress(b"".join(b"\0" + bytes(2000) for _ in range(2000)), 0)
    chunks = [chunk(b"IDAT", pixels[start : start + 1024]) for start in range(0, len(pixels), 1024)]
    assert len(chunks) * 3 > FREE_READS
    content = io.BytesIO(head + b"".join(chunks) + chunk(b"IEND"))
    assert decode_image(content, "it").size == (2000, 2000)


def test_reads_are_counted_by_the_size_of_the_file(tmp_path):
    (tmp_path / "it").write_bytes(bytes(3 * BYTES_PER_READ))
    with (tmp_path / "it").open("rb") as opened:
        file = FewReads(opened)
        for _ in range(FREE_READS + 3):
            assert file.tell() == 0 and file.read(0) == b""
        for _ in range(2):
            with pytest.raises(ValueError, match="more than 10,003 steps"):
                file.read()
