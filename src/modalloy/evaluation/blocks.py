"""Cutting a score matrix into blocks, and checking which caption belongs to which image."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from modalloy.errors import ConfigError, DataError


def even_slices(length: int, block: int) -> list[slice]:
    """Cut `range(length)` into the fewest runs of at most `block`, equally long to within one.

    Even runs leave no sliver at the end, which a matrix product would compute slowly and round differently.

    Raises:
        ConfigError: `block` is less than 1.

    >>> even_slices(7, 3)
    [slice(0, 3, None), slice(3, 5, None), slice(5, 7, None)]
    """
    if block < 1:
        raise ConfigError(f"block must be at least 1 (rows a block takes), got {block}")
    count = -(-length // block)
    edges = [-(-length * index // count) for index in range(count + 1)] if count else [0]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def check_captions(caption_image: Int[Tensor, "captions"], n_images: int, n_captions: int) -> Int[Tensor, "captions"]:
    """Return `caption_image` as int64 after checking that it names one existing image for each caption.

    Args:
        caption_image: row of each caption's image; any number of captions an image, in any order.
        n_images: size of the image gallery.
        n_captions: size of the caption gallery.

    Raises:
        DataError: a gallery is empty, the length isn't `n_captions`, or a row is out of range.
    """
    if n_images < 1 or n_captions < 1:
        raise DataError(
            f"nothing to evaluate: expected at least one image and one caption, got {n_images} images and "
            f"{n_captions} captions"
        )
    if caption_image.ndim != 1 or caption_image.dtype.is_floating_point or caption_image.dtype.is_complex:
        raise DataError(
            "caption_image must be a vector of whole numbers, the row of each caption's image, got shape "
            f"{tuple(caption_image.shape)} of {caption_image.dtype}"
        )
    if len(caption_image) != n_captions:
        raise DataError(
            f"caption_image must hold the image row of each of the {n_captions} captions, "
            f"got {len(caption_image)} entries"
        )
    outside = ((caption_image < 0) | (caption_image >= n_images)).nonzero()
    if len(outside):
        caption = int(outside[0])
        raise DataError(
            f"caption {caption} belongs to image row {int(caption_image[caption])}, expected a row from 0 to "
            f"{n_images - 1}"
        )
    return caption_image.long()


def own_items(
    image_of: Int[Tensor, "captions"], rows: slice, columns: slice
) -> Bool[Tensor, "block_images block_captions"]:
    """Which captions of a block belong to which of its images."""
    images = torch.arange(rows.start, rows.stop, device=image_of.device)
    return images[:, None] == image_of[None, columns]
