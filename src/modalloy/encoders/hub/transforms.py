"""Preprocessing of libraries that give a function from a picture to a tensor instead of a processor."""

from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image
from torch import Tensor

from modalloy.encoders.base import Prepared, require_image
from modalloy.encoders.hub.processing import PictureProcessor


class TransformedPictures(PictureProcessor):
    """From a picture to its pixels by a library's own transform.

    Args:
        transform: from a picture in RGB to "channels height width".
        settings: what the transform does, for a fingerprint.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor], settings: Mapping[str, Any]) -> None:
        self._transform = transform
        self._settings = dict(settings)
        self._names = ("pixels",)

    def __call__(self, image: object) -> Prepared:
        """The pixels of one picture."""
        return self._transform(require_image(image))

    def settings(self) -> dict[str, Any]:
        """What the transform does."""
        return self._settings
