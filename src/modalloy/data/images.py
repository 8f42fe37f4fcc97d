"""Decodes pictures that nobody has looked at: bounded memory, known formats only, one kind of error."""

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from modalloy.data.bombs import check_cost
from modalloy.data.few_reads import FewReads
from modalloy.data.tar_members import read_member, split_tar_path
from modalloy.errors import ImageError
from modalloy.files import sha256_of

MAX_PIXELS = 64_000_000
"""Pictures with more pixels are refused: room for a 61-megapixel camera, at 200 MB for the decoded RGB."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""The decoders in reach; Pillow's many others are rarer, less tested and never tried."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""What the files of these formats are called (in any case)."""

OpenFile = BinaryIO | io.BytesIO
"""A file open to be read; a BytesIO has no name, and so isn't a BinaryIO to checks at run time."""

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes a picture's first frame to RGB, upright by its EXIF orientation, transparency over white.

    16-bit greys are scaled to 8 bits; colour profiles are not applied.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "half.png"
    >>> Image.new("RGBA", (2, 1), (255, 0, 0, 128)).save(file)
    >>> open_image(file).getpixel((0, 0))
    (255, 127, 127)

    Args:
        path: the picture's file, in one of `FORMATS`, or TAR/MEMBER for one in a tar.
        max_pixels: a picture with more pixels (width x height in its header) is refused undecoded.

    Raises:
        ImageError: the file is missing, unreadable, empty, truncated, too large, too dear or not a picture (named).
    """
    with _opened(Path(path), max_pixels, decode=True) as image:
        return _decoded(image)


def decode_image(file: OpenFile, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The same of a picture that came some other way than by a path.

    >>> file = io.BytesIO()
    >>> Image.new("RGB", (2, 1), "red").save(file, "PNG")
    >>> decode_image(file, "the upload").size
    (2, 1)

    Args:
        file: the picture, read from its start.
        name: what it is called in errors.
        max_pixels: a picture with more pixels is refused undecoded.

    Raises:
        ImageError: the file is empty, truncated, too large, too dear or not a picture (named).
    """
    with _opened(name, max_pixels, file, decode=True) as image:
        return _decoded(image)


def image_format(file: OpenFile, name: str, max_pixels: int = MAX_PIXELS) -> str:
    """Which of `FORMATS` a picture's header says that it is; arguments and errors as of `decode_image`."""
    with _opened(name, max_pixels, file) as image:
        return str(image.format)


def check_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> None:
    """Raises the error that `open_image` would raise for a picture's header, without decoding the rest.

    Raises:
        ImageError: the file is missing, unreadable, empty, too large or not a picture (named).
    """
    with _opened(Path(path), max_pixels):
        pass


def sha256_of_image(path: str | Path) -> str:
    """The SHA-256 of a picture's bytes, also where it is in a tar, as 64 hexadecimal digits.

    Raises:
        OSError: the file can't be read.
        ImageError: it isn't a file, or the tar has no such member, or it can't be read.
    """
    if member := split_tar_path(Path(path)):
        return hashlib.sha256(read_member(*member)).hexdigest()
    _require_regular(Path(path), Path(path).stat())
    return sha256_of(path)


@contextmanager
def _opened(
    path: Path | str, max_pixels: int, file: OpenFile | None = None, decode: bool = False
) -> Iterator[Image.Image]:
    """The picture, its header checked, its pixels not yet decoded; whatever fails becomes an ImageError."""
    try:
        with (
            _file(Path(path)) if file is None else nullcontext(_rewound(path, file)) as content,
            Image.open(reads := FewReads(content), formats=FORMATS) as image,
        ):
            _check_size(path, image.width, image.height, max_pixels)
            reads.allow_for(image)
            if decode:
                check_cost(content, max_pixels)
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{path} isn't a picture in {', '.join(FORMATS)}; convert or remove it.") from None
    except PermissionError:
        raise ImageError(f"{path} can't be read: permission denied; change the file's permissions.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path} is too large ({error}); make it smaller.") from None
    # Damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, MemoryError, ...
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"{path} can't be decoded ({reason}); replace or convert the file.") from error


def _file(path: Path) -> io.BytesIO | io.BufferedReader:
    """The picture's file, or its bytes where it is in a tar."""
    if member := split_tar_path(path):
        content = read_member(*member)
        if not content:
            raise ImageError(f"{path} is empty; replace the file.")
        return io.BytesIO(content)
    _check_file(path)
    return path.open("rb")


def _rewound(name: Path | str, file: OpenFile) -> OpenFile:
    if not file.seek(0, os.SEEK_END):
        raise ImageError(f"{name} is empty; give a picture.")
    file.seek(0)
    return file


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"{path} doesn't exist; check the path.") from None
    _require_regular(path, status)
    if status.st_size == 0:
        raise ImageError(f"{path} is empty; replace the file.")


def _require_regular(path: Path, status: os.stat_result) -> None:
    # Opening a named pipe or a device could wait for ever.
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "device or pipe"
        raise ImageError(f"{path} is a {kind}, not a picture; give a file.")


def _check_size(path: Path | str, width: int, height: int, max_pixels: int) -> None:
    # Above its own limit Pillow only warns, unless warnings are errors, so the limit is kept here.
    limit = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
    if not 0 < width * height <= limit:
        raise ImageError(
            f"{path} has {width} x {height} = {width * height:,} pixels; "
            f"from 1 to {limit:,} are allowed: make it smaller."
        )


def _orientation(image: Image.Image) -> int:
    # Photographs with damaged EXIF are common and their pixels are sound; browsers ignore such EXIF too.
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _decoded(image: Image.Image) -> Image.Image:
    # Pillow turns a TIFF upright while loading it, and then has no orientation left to tell.
    image.load()
    method = _UPRIGHT.get(_orientation(image))
    picture = _to_rgb(image)
    # The orientation has been dealt with here, so a second reader must not find it.
    picture.info = {}
    return picture if method is None else picture.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        return _sixteen_to_eight_bits(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("decimal numbers of unknown range; it should have 8 or 16 bits")
    if image.has_transparency_data:
        covered = image.convert("RGBA")
        picture = Image.new("RGB", image.size, "white")
        picture.paste(covered, mask=covered)
        return picture
    return image.convert("RGB")


def _sixteen_to_eight_bits(image: Image.Image) -> Image.Image:
    """Scales by 255 / 65535; Pillow's own conversion clips at 255 instead."""
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("32-bit numbers of unknown range; it should have 8 or 16 bits")
    return Image.fromarray(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8))
