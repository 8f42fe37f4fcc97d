"""RandAugment (arXiv 1909.13719) on Pillow pictures, after a random crop and flip, as ALBEF trains with them."""

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image, ImageEnhance, ImageOps

from modalloy.errors import ConfigError

MAX_MAGNITUDE = 10
# To be raised when a change of the code changes a picture, so that stored features are made anew.
_VERSION = 1
_GREY = (128, 128, 128)
_ASPECT_RATIOS = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10

# Their largest strengths, at magnitude 10, are ALBEF's (dataset/randaugment.py).
_SHEAR = 0.3
_DEGREES = 30.0
# Ten pixels of the 384 to which ALBEF resizes first: here pictures keep their size.
_SHIFT = 10 / 384


def enhancement(magnitude: float) -> float:
    """The factor of brightness and sharpness: 0.1 at magnitude 0, no change at 5, 1.9 at 10.

    >>> round(enhancement(7.0), 2)
    1.36
    """
    return 0.1 + 1.8 * magnitude / MAX_MAGNITUDE


def _affine(image: Image.Image, coefficients: tuple[float, float, float, float, float, float]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR, fillcolor=_GREY
    )


def _shift(magnitude: float, side: int) -> float:
    return _SHIFT * magnitude / MAX_MAGNITUDE * side


def _shear(magnitude: float) -> float:
    return _SHEAR * magnitude / MAX_MAGNITUDE


def _rotate(image: Image.Image, magnitude: float) -> Image.Image:
    degrees = _DEGREES * magnitude / MAX_MAGNITUDE
    return image.rotate(degrees, resample=Image.Resampling.BILINEAR, fillcolor=_GREY)


Operation = Callable[[Image.Image, float], Image.Image]

OPERATIONS: dict[str, Operation] = {
    "Identity": lambda image, magnitude: image,
    "AutoContrast": lambda image, magnitude: ImageOps.autocontrast(image),
    "Equalize": lambda image, magnitude: ImageOps.equalize(image),
    "Brightness": lambda image, magnitude: ImageEnhance.Brightness(image).enhance(enhancement(magnitude)),
    "Sharpness": lambda image, magnitude: ImageEnhance.Sharpness(image).enhance(enhancement(magnitude)),
    "ShearX": lambda image, magnitude: _affine(image, (1.0, _shear(magnitude), 0.0, 0.0, 1.0, 0.0)),
    "ShearY": lambda image, magnitude: _affine(image, (1.0, 0.0, 0.0, _shear(magnitude), 1.0, 0.0)),
    "TranslateX": lambda image, magnitude: _affine(image, (1.0, 0.0, _shift(magnitude, image.width), 0.0, 1.0, 0.0)),
    "TranslateY": lambda image, magnitude: _affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, _shift(magnitude, image.height))),
    "Rotate": _rotate,
}
"""Each takes an RGB picture and a magnitude from 0 to 10; the size stays, and what comes in from outside is grey.

At magnitude 10 a shear moves by 0.3 pixels a pixel, a translation by 10/384 of the side, a rotation by 30 degrees,
and brightness and sharpness have the factor 1.9 (see `enhancement`); the other operations have no strength.
"""
_SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


@dataclass(frozen=True)
class RandAugment:
    """Augments pictures, each in a way that its key decides.

    As in ALBEF's training: a crop of random area, shape and place, a flip with probability 1/2, then operations
    drawn with replacement, each of which happens with probability 1/2, with a random sign where it has a direction.

    >>> augment, image = RandAugment(), Image.linear_gradient("L").convert("RGB")
    >>> augment(image, "beach/0") == augment(image, "beach/0"), augment(image, "beach/0") == augment(image, "beach/1")
    (True, False)

    Raises:
        ConfigError: a setting is out of range.
    """

    operations: int = 2
    """How many operations are drawn."""
    magnitude: float = 7.0
    """Their strength, from 0 to 10."""
    probability: float = 0.5
    """Chance of each drawn operation to happen."""
    crop: tuple[float, float] = (0.5, 1.0)
    """Least and largest part of the area that a crop keeps; (1, 1) for none."""
    flip: bool = True
    """Whether half of the pictures are mirrored; better not where captions tell left from right."""
    seed: int = 0
    """Other seeds give other pictures."""

    def __post_init__(self) -> None:
        if self.operations < 0:
            raise ConfigError(f"operations must be at least 0, got {self.operations}.")
        if not 0 <= self.magnitude <= MAX_MAGNITUDE:
            raise ConfigError(f"magnitude must lie in [0, {MAX_MAGNITUDE}], got {self.magnitude}.")
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"probability must lie in [0, 1], got {self.probability}.")
        smallest, largest = self.crop
        if not 0 < smallest <= largest <= 1:
            raise ConfigError(f"crop must be two parts of the area, 0 < least <= largest <= 1, got {self.crop}.")

    def __call__(self, image: Image.Image, key: str) -> Image.Image:
        """The augmented picture; the same for the same settings and key, on whatever thread or machine.

        Args:
            image: an RGB picture, which is left as it is.
            key: names the picture and the copy of it.
        """
        # Python keeps the sequence of random() for a seed from version to version, unlike that of its other draws.
        draw = random.Random(int(hashlib.sha256(f"{self.seed}\n{key}".encode()).hexdigest(), 16)).random
        image = image.crop(self._box(image.width, image.height, draw))
        if self.flip and draw() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        names = list(OPERATIONS)
        for _ in range(self.operations):
            name, happens, sign = names[int(draw() * len(names))], draw() < self.probability, draw() < 0.5
            if happens:
                signed = -self.magnitude if sign and name in _SIGNED else self.magnitude
                image = OPERATIONS[name](image, signed)
        return image

    def settings(self) -> dict[str, Any]:
        """All that changes the pictures, for a fingerprint."""
        return {"version": _VERSION, **asdict(self)}

    def _box(self, width: int, height: int, draw: Callable[[], float]) -> tuple[int, int, int, int]:
        """The crop: uniform in area, log-uniform in aspect ratio; the whole picture if no draw fits into it."""
        smallest, largest = self.crop
        if smallest == 1:
            return 0, 0, width, height
        narrowest, widest = map(math.log, _ASPECT_RATIOS)
        for _ in range(_CROP_ATTEMPTS):
            area = width * height * (smallest + (largest - smallest) * draw())
            ratio = math.exp(narrowest + (widest - narrowest) * draw())
            columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < columns <= width and 0 < rows <= height:
                left, top = int(draw() * (width - columns + 1)), int(draw() * (height - rows + 1))
                return left, top, left + columns, top + rows
        return 0, 0, width, height
