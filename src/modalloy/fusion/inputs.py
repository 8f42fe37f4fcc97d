"""What a fuser reads of one encoder: a batch of embeddings and padded tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from modalloy.encoders import Modality
from modalloy.errors import ConfigError


@dataclass(frozen=True)
class EncoderFeatures:
    """One encoder's features of a batch of items of one modality.

    Attributes:
        embedding: unit-norm global embeddings.
        tokens: token features, the summary token first, padded at the end.
        mask: True where a token is real.
    """

    embedding: Float[Tensor, "batch dim"]
    tokens: Float[Tensor, "batch tokens width"]
    mask: Bool[Tensor, "batch tokens"]

    def to(self, device: torch.device, non_blocking: bool = False) -> "EncoderFeatures":
        """The same features on another device."""
        return EncoderFeatures(
            self.embedding.to(device, non_blocking=non_blocking),
            self.tokens.to(device, non_blocking=non_blocking),
            self.mask.to(device, non_blocking=non_blocking),
        )

    def items(self, chosen: slice) -> "EncoderFeatures":
        """The features of some items, as views."""
        return EncoderFeatures(self.embedding[chosen], self.tokens[chosen], self.mask[chosen])


@dataclass(frozen=True)
class InputShape:
    """The widths of one input encoder, which a fuser's layers are made for.

    Attributes:
        dim: width of its global embedding, the same for both modalities.
        image_width: width of its image tokens.
        text_width: width of its text tokens.
    """

    dim: int
    image_width: int
    text_width: int

    def width(self, modality: Modality) -> int:
        """The token width of one modality."""
        return self.image_width if modality == "image" else self.text_width


def check_inputs(inputs: Sequence[EncoderFeatures], shapes: Sequence[InputShape], modality: Modality) -> None:
    """Refuses features whose number or widths differ from those that the fuser was made for.

    Raises:
        ConfigError: with the encoder's position, what was expected and what was got.
    """
    if len(inputs) != len(shapes):
        raise ConfigError(
            f"the fuser takes the features of {len(shapes)} encoders, got {len(inputs)}; "
            "pass them all, in the order in which the fuser was fitted."
        )
    for position, (features, shape) in enumerate(zip(inputs, shapes, strict=True)):
        expected = (shape.dim, shape.width(modality))
        got = (features.embedding.shape[-1], features.tokens.shape[-1])
        if expected != got:
            raise ConfigError(
                f"encoder {position}'s {modality} features have embedding and token widths {got}, "
                f"but the fuser was fitted on {expected}; pass the encoders in the order of the fit."
            )
