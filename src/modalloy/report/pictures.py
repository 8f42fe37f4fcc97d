"""The report's pictures as data URIs: thumbnails, each embedded once, and attention drawn over a picture."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from modalloy.data import open_image
from modalloy.errors import DataError, ImageError

THUMBNAIL = 160
"""Longest side of a thumbnail, in pixels."""
OVERLAY = 256
"""Longest side of a picture with attention over it, in pixels."""
SMALL_OVERLAY = 128
"""The same where there are many of them."""
HEAT = ((255, 243, 178), (254, 178, 76), (240, 59, 32), (128, 0, 38), (48, 0, 40))
"""Colours from the lowest to the highest attention, each darker than the last: readable without hue too."""
_FADED = 0.45
_STRONGEST = 0.88


@dataclass(frozen=True)
class Thumbnail:
    """A picture of the report."""

    name: str
    """The file's name."""
    css_class: str | None
    """The style class whose background it is; None if it can't be read."""
    reason: str = ""
    """Why it can't be read."""


class Album:
    """Thumbnails that are embedded once each, however often they are shown."""

    def __init__(self) -> None:
        self._thumbnails: dict[Path, Thumbnail] = {}
        self.uris: dict[str, str] = {}
        """Data URI by style class."""

    def add(self, path: Path) -> Thumbnail:
        """The thumbnail of a picture; without a class, and with the reason, if it can't be read."""
        if path not in self._thumbnails:
            self._thumbnails[path] = self._read(path)
        return self._thumbnails[path]

    def _read(self, path: Path) -> Thumbnail:
        try:
            picture = open_image(path)
        except ImageError as error:
            return Thumbnail(path.name, None, str(error))
        picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        css_class = f"picture-{len(self.uris)}"
        self.uris[css_class] = data_uri(picture)
        return Thumbnail(path.name, css_class)


def data_uri(picture: Image.Image) -> str:
    """A picture as the text that HTML and CSS take in place of an address.

    >>> data_uri(Image.new("RGB", (4, 4), "white"))[:23]
    'data:image/webp;base64,'
    """
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def attention_overlay(
    picture: Image.Image, weights: Float[Tensor, "rows columns"], longest: int = OVERLAY
) -> Image.Image:
    """The picture, greyed and faded, under the colours of `HEAT`.

    It is clear at the smallest weight and strongest at the largest. The weights are spread bicubically over
    the largest centred crop that has the grid's shape.

    >>> import torch
    >>> attention_overlay(Image.new("RGB", (640, 480)), torch.eye(7)).size
    (256, 256)

    Args:
        picture: in RGB.
        weights: attention on each token of the grid.
        longest: longest side of the result, in pixels.

    Raises:
        DataError: the weights are none, negative or not finite.
    """
    grid = weights.detach().float().cpu().numpy()
    if not grid.size or not np.isfinite(grid).all() or grid.min() < 0:
        raise DataError(
            f"Attention must be numbers of at least 0 on a grid, got {tuple(grid.shape)} of them "
            "with negative, infinite or NaN ones; check the model that gave them."
        )
    rows, columns = grid.shape
    scale = longest / max(rows, columns)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    crop = ImageOps.fit(picture, size, Image.Resampling.BICUBIC)
    grey = np.asarray(ImageOps.grayscale(crop), dtype=np.float32)[..., None]
    faded = 255 - (255 - grey) * _FADED
    spread = np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))
    share = np.clip((spread - grid.min()) / (np.ptp(grid) or 1.0), 0, 1)[..., None]
    mixed = faded * (1 - _STRONGEST * share) + _heat(share[..., 0]) * _STRONGEST * share
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _heat(share: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The colour of each share of the highest weight."""
    at = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(share, at, channel) for channel in zip(*HEAT, strict=True)], axis=-1)
