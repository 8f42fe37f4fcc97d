"""Which words of a caption attend to which regions of its picture: the weights that the local similarity uses."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from modalloy.align.cross_attention import SCAN, CrossAttention, pair_attention
from modalloy.align.local_similarity import Tokens, operands_of, require_one_width
from modalloy.errors import DataError


class AttentionMaps(NamedTuple):
    """Attention between the words and the regions of some pairs."""

    weights: Float[Tensor, "pairs words regions"]
    """For "t2i" a word's weights add up to 1, for "i2t" those of a region; padded tokens have none."""
    words: Float[Tensor, "pairs words"]
    """What each word adds to the score, which is their mean; for "t2i" the word's cosine with what it attends to."""


@torch.no_grad()
def attention_maps(images: Tokens, captions: Tokens, attention: CrossAttention = SCAN) -> AttentionMaps:
    """The attention behind `local_similarity` of each image with the caption in the same place.

    Args:
        images: regions of the images.
        captions: words of the captions, of the same width.
        attention: its direction, focus and temperature.

    Raises:
        DataError: there isn't one caption for each image, or the widths of the tokens differ.

    >>> images = Tokens(torch.eye(3)[None], torch.ones(1, 3, dtype=torch.bool))
    >>> captions = Tokens(torch.eye(3)[None, :2], torch.ones(1, 2, dtype=torch.bool))
    >>> attention_maps(images, captions).weights.round(decimals=3)
    tensor([[[1., 0., 0.],
             [0., 1., 0.]]])
    """
    require_one_width(images, captions)
    if len(images) != len(captions):
        raise DataError(f"each image must have its caption in the same place, got {len(images)} and {len(captions)}")
    t2i = attention.direction == "t2i"
    attended = pair_attention(operands_of(*((images, captions) if t2i else (captions, images))), attention)
    weights, parts = (each.mT if t2i else each for each in attended)
    return AttentionMaps(weights, parts.sum(2) * captions.mask.sum(1, keepdim=True))
