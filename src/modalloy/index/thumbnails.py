"""What an index keeps of a picture's looks, so that a page of results needs no originals."""

import io

from PIL import Image

LONGEST_SIDE = 320
"""Of a thumbnail, in pixels."""

_QUALITY = 80


def thumbnail_of(picture: Image.Image) -> bytes:
    """A small JPEG of a decoded picture; a smaller picture keeps its size.

    >>> Image.open(io.BytesIO(thumbnail_of(Image.new("RGB", (640, 160))))).size
    (320, 80)

    Args:
        picture: in RGB, as `open_image` gives it.
    """
    small = picture.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return file.getvalue()
