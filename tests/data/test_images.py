import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modalloy.data.images import FORMATS, MAX_PIXELS, SUFFIXES, check_image, decode_image, image_format, open_image
from modalloy.errors import ImageError

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def noise_file(folder: Path, format: str) -> Path:
    path = folder / f"noise.{format.lower()}"
    Image.fromarray(NOISE).save(path, format=format)
    return path


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that announces a size and holds no pixels at all."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    # Pillow reads on until the first chunk of pixels.
    data = b"IDAT" + zlib.compress(b"")
    pixels = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + pixels)
    return path


@pytest.mark.parametrize("format", FORMATS)
def test_reads_each_format(tmp_path, format):
    picture = open_image(noise_file(tmp_path, format))
    assert (picture.mode, picture.size) == ("RGB", (60, 40))
    if format in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(np.asarray(picture), NOISE)


def test_accepts_a_path_as_text(tmp_path):
    assert open_image(str(noise_file(tmp_path, "PNG"))).size == (60, 40)


def test_each_suffix_belongs_to_a_known_format():
    Image.init()
    assert {Image.EXTENSION[suffix] for suffix in SUFFIXES} == set(FORMATS)


@pytest.mark.parametrize("format", FORMATS)
def test_truncated(tmp_path, format):
    path = noise_file(tmp_path, format)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=f"noise.{format.lower()}"):
        open_image(path)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=30)
@given(data=st.data())
def test_damage_never_raises_anything_else(tmp_path_factory, format, data):
    path = noise_file(tmp_path_factory.mktemp("damage"), format)
    content = bytearray(path.read_bytes())
    # Headers are where the damage is interesting.
    places = st.one_of(st.integers(0, 100), st.integers(0, len(content) - 1))
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=5)):
        content[place] = value
    path.write_bytes(content)
    try:
        picture = open_image(path)
    except ImageError as error:
        assert str(path) in str(error)
    else:
        assert picture.mode == "RGB"


def test_empty(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match=r"empty\.jpg is empty"):
        open_image(tmp_path / "empty.jpg")


def test_missing(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.jpg doesn't exist"):
        open_image(tmp_path / "gone.jpg")


def test_folder(tmp_path):
    with pytest.raises(ImageError, match="is a folder"):
        open_image(tmp_path)


def test_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="device or pipe"):
        open_image(tmp_path / "pipe.jpg")


def test_name_with_a_null_byte():
    with pytest.raises(ImageError, match="null byte"):
        open_image("a\0b.jpg")


def test_no_permission(tmp_path, monkeypatch):
    path = noise_file(tmp_path, "PNG")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    # chmod doesn't stop root, as which tests often run in containers.
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ImageError, match=r"noise\.png can't be read: permission denied"):
        open_image(path)


@pytest.mark.parametrize(
    "content", [b"just some text, no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\x10JFIF"]
)
def test_not_a_picture(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.jpg"):
        open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("format", ["PPM", "ICO", "TGA", "EPS", "JPEG2000"])
def test_other_decoders_are_out_of_reach(tmp_path, format):
    path = tmp_path / "renamed.png"
    Image.new("RGB", (32, 32)).save(path, format=format)
    with pytest.raises(ImageError, match="isn't a picture in JPEG, PNG"):
        open_image(path)


@pytest.mark.parametrize("size", [(9000, 9000), (10_000, 10_000), (40_000, 40_000)])
@pytest.mark.parametrize("filter", ["error", "ignore"])
def test_huge_is_refused_by_its_header(tmp_path, size, filter):
    path = png_header(tmp_path / "bomb.png", *size)
    for read in (open_image, check_image):
        with warnings.catch_warnings():
            warnings.simplefilter(filter)
            with pytest.raises(ImageError, match=r"bomb\.png .*pixels"):
                read(path)


def test_pixel_limit_is_inclusive(tmp_path):
    path = noise_file(tmp_path, "PNG")
    assert open_image(path, max_pixels=2400).size == (60, 40)
    with pytest.raises(ImageError, match=r"60 x 40 = 2,400 pixels; from 1 to 2,399"):
        open_image(path, max_pixels=2399)


@pytest.mark.parametrize("filter", ["error", "ignore"])
def test_pillow_limit_holds_even_where_more_is_asked_for(tmp_path, monkeypatch, filter):
    path = noise_file(tmp_path, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2399)
    with warnings.catch_warnings():
        warnings.simplefilter(filter)
        with pytest.raises(ImageError, match=r"2,?400 pixels"):
            open_image(path, max_pixels=10 * MAX_PIXELS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_image(path).size == (60, 40)


def test_header_check_passes_what_only_decoding_finds(tmp_path):
    path = noise_file(tmp_path, "JPEG")
    path.write_bytes(path.read_bytes()[:-500])
    check_image(path)
    with pytest.raises(ImageError, match="truncated"):
        open_image(path)


def test_cmyk(tmp_path):
    path = tmp_path / "cmyk.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=100)
    red, green, blue = open_image(path).getpixel((8, 8))
    assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    grey = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(grey).save(path)
    expected = np.rint(grey / 257).astype(np.uint8)
    for channel in range(3):
        np.testing.assert_array_equal(np.asarray(open_image(path))[..., channel], expected)


def test_sixteen_bits_big_endian(tmp_path):
    path = tmp_path / "deep.tiff"
    Image.frombytes("I;16B", (2, 1), np.array([0, 0x8000], dtype=">u2").tobytes()).save(path)
    assert [open_image(path).getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (128, 128, 128)]


def test_thirty_two_bits_are_scaled_where_the_range_is_known(tmp_path):
    path = tmp_path / "deep.tiff"
    Image.fromarray(np.array([[0, 65535]], dtype=np.int32)).save(path)
    assert open_image(path).getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("values", [np.array([[0, 70_000]], np.int32), np.array([[0.0, 0.5]], np.float32)])
def test_unknown_range_is_refused(tmp_path, values):
    path = tmp_path / "strange.tiff"
    Image.fromarray(values).save(path)
    with pytest.raises(ImageError, match=r"strange\.tiff .*unknown range"):
        open_image(path)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_first_frame_of_an_animation(tmp_path, format):
    path = tmp_path / "moving.img"
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    frames[0].save(path, format=format, save_all=True, append_images=frames[1:])
    red, green, blue = open_image(path).getpixel((5, 5))
    assert red > 240 and green < 15 and blue < 15


UPRIGHT = {
    1: lambda array: array,
    2: np.fliplr,
    3: lambda array: np.rot90(array, 2),
    4: np.flipud,
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: np.rot90(array, 2).swapaxes(0, 1),
    8: lambda array: np.rot90(array),
}


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation(tmp_path, suffix, orientation):
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(NOISE).save(path, exif=exif)
    picture = open_image(path)
    np.testing.assert_array_equal(np.asarray(picture), UPRIGHT[orientation](NOISE))
    assert 0x0112 not in picture.getexif()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0"])
def test_damaged_exif_does_not_cost_the_picture(tmp_path, exif):
    path = tmp_path / "odd.jpg"
    Image.fromarray(NOISE).save(path, exif=exif)
    assert open_image(path).size == (60, 40)


def test_transparency_goes_over_white(tmp_path):
    for number, (mode, colour, expected) in enumerate(
        [
            ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
            ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
            ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
            ("LA", (0, 0), (255, 255, 255)),
            ("LA", (0, 255), (0, 0, 0)),
        ]
    ):
        path = tmp_path / f"{number}.png"
        Image.new(mode, (2, 2), colour).save(path)
        assert open_image(path).getpixel((1, 1)) == expected


@pytest.mark.parametrize(("format", "transparency"), [("PNG", 1), ("PNG", bytes([255, 0])), ("GIF", 1)])
def test_palette_with_transparency(tmp_path, format, transparency):
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    path = tmp_path / "palette.img"
    palette.save(path, format=format, transparency=transparency)
    picture = open_image(path)
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 255), (255, 255, 255)]


def test_transparent_colour_of_a_grey_or_rgb_picture(tmp_path):
    Image.new("L", (2, 2), 7).save(tmp_path / "grey.png", transparency=7)
    Image.new("RGB", (2, 2), (7, 8, 9)).save(tmp_path / "rgb.png", transparency=(7, 8, 9))
    for name in ("grey.png", "rgb.png"):
        assert open_image(tmp_path / name).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "value", "expected"), [("1", 1, 255), ("L", 9, 9)])
def test_grey(tmp_path, mode, value, expected):
    Image.new(mode, (2, 2), value).save(tmp_path / "grey.png")
    assert open_image(tmp_path / "grey.png").getpixel((0, 0)) == (expected,) * 3


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_are_read_like_a_file(tmp_path, format):
    Image.effect_noise((9, 7), 90).convert("RGB").save(tmp_path / "a", format)
    file = io.BytesIO((tmp_path / "a").read_bytes())
    file.seek(5)
    assert image_format(file, "the upload") == format
    assert decode_image(file, "the upload").tobytes() == open_image(tmp_path / "a").tobytes()


@pytest.mark.parametrize("read", [decode_image, image_format])
def test_bytes_that_are_no_picture_are_named(read):
    for content, said in {b"": "the upload is empty", b"x": "the upload isn't a picture"}.items():
        with pytest.raises(ImageError, match=said):
            read(io.BytesIO(content), "the upload")
    file = io.BytesIO()
    Image.new("RGB", (5, 4)).save(file, "PNG")
    with pytest.raises(ImageError, match="the upload has 5 x 4 = 20 pixels; from 1 to 19"):
        read(file, "the upload", 19)
