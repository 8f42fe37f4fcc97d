"""From a PNG of any size and mode to a square canvas, and what tells two canvases apart."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

CANVAS = 224
_THUMBNAIL = 16
_MARGIN = 0.04
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class PictureError(ValueError):
    """A picture can't be used; the message is the reason it is dropped for."""


def png_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels from the file's header alone, so that nothing is decoded.

    Raises:
        PictureError: the file isn't a PNG.
    """
    with path.open("rb") as file:
        header = file.read(24)
    if len(header) < 24 or header[:8] != _PNG_SIGNATURE:
        raise PictureError("unreadable picture")
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def canvas_of(path: Path, max_pixels: int, min_side: int) -> Image.Image:
    """The picture on white, cropped to what is drawn, fitted into the centre of a square canvas.

    Raises:
        PictureError: unreadable, more than `max_pixels` pixels, longer side below `min_side`, or blank.
    """
    width, height = png_size(path)
    if width * height > max_pixels:
        raise PictureError(f"more than {max_pixels / 1e6:g} megapixels")
    if max(width, height) < min_side:
        raise PictureError(f"smaller than {min_side} pixels")
    try:
        with Image.open(path) as image:
            rgba = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError):
        raise PictureError("unreadable picture") from None
    drawn = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    white = Image.new("RGB", drawn.size, "white")
    # Tints that no eye sees (254 of 255) would keep a page's empty margin.
    box = ImageChops.difference(drawn, white).convert("L").point(lambda value: 255 * (value > 6)).getbbox()
    if box is None:
        raise PictureError("blank picture")
    canvas = _fit(drawn.crop(box))
    if np.asarray(canvas.convert("L"), dtype=np.float32).std() < 4:
        raise PictureError("blank picture")
    return canvas


def shows_missing_picture(canvas: Image.Image) -> bool:
    """Whether the picture holds the renderer's red sign "Linked image not found", at any opacity."""
    red, green, blue = np.moveaxis(np.asarray(canvas, dtype=np.int16), -1, 0)
    sign = (red >= 245) & (abs(green - blue) <= 6) & (green <= 125)
    return bool(sign.mean() > 0.004)


def _fit(image: Image.Image) -> Image.Image:
    inner = round(CANVAS * (1 - 2 * _MARGIN))
    scale = inner / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    canvas = Image.new("RGB", (CANVAS, CANVAS), "white")
    canvas.paste(small, ((CANVAS - width) // 2, (CANVAS - height) // 2))
    return canvas


def fingerprint_of(canvas: Image.Image) -> np.ndarray:
    """The 16x16 grey picture as a unit vector of mean 0: inner products of these are correlations."""
    grey = canvas.convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.float64).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-12)


def encode(canvas: Image.Image, quality: int) -> bytes:
    """The canvas as WebP."""
    buffer = io.BytesIO()
    canvas.save(buffer, format="WEBP", quality=quality, method=6)
    return buffer.getvalue()
