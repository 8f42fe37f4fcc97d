"""From a picture of any size to the square tensor that a vision model takes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from modalloy.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageTensor:
    """Crops the largest centred square, resizes it and, per batch, normalises it.

    A picture travels as bytes, a quarter of the floats' size; `normalise` makes floats of the whole batch.

    >>> prepare = ImageTensor(size=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> image = prepare(Image.new("RGB", (9, 5), "white"))
    >>> image.shape, prepare.normalise([image]).unique()
    (torch.Size([3, 4, 4]), tensor([1.]))
    """

    size: int
    """Side of the square, in pixels."""
    mean: tuple[float, float, float]
    """Mean of each channel, where white is 1."""
    std: tuple[float, float, float]
    """Standard deviation of each channel."""
    resample: Image.Resampling = field(default=Image.Resampling.BICUBIC)
    """Filter of the resizing; Pillow's are antialiased."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"The image size must be at least 1 pixel, got {self.size}.")

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 height width"]:
        """Crops and resizes one picture."""
        square = ImageOps.fit(image, (self.size, self.size), method=self.resample)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()

    def normalise(self, images: "list[UInt8[Tensor, '3 height width']]") -> Float[Tensor, "batch 3 height width"]:
        """Stacks pictures, and shifts and scales each channel."""
        batch = torch.stack(images).to(torch.float32)
        mean = torch.tensor(self.mean).view(3, 1, 1) * 255
        std = torch.tensor(self.std).view(3, 1, 1) * 255
        return batch.sub_(mean).div_(std)

    def settings(self) -> dict[str, Any]:
        """All that changes the numbers, for a fingerprint."""
        return {
            "size": self.size,
            "crop": "centred square",
            "resample": self.resample.name,
            "mean": self.mean,
            "std": self.std,
        }
