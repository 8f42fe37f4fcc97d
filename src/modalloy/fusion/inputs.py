"""What a fuser reads of one encoder: a batch of embeddings and padded tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from modalloy.encoders import Modality
from modalloy.errors import ConfigError, DataError


@dataclass(frozen=True)
class EncoderFeatures:
    """One encoder's features of a batch of items of one modality.

    Attributes:
        embedding: unit-norm global embeddings.
        tokens: token features, the summary token first, padded at the end.
        mask: True where a token is real.
        present: False where an item lacks this encoder; what stands in its row (one token or more, any numbers) is
            then not read. By default no item lacks it.
    """

    embedding: Float[Tensor, "batch dim"]
    tokens: Float[Tensor, "batch tokens width"]
    mask: Bool[Tensor, "batch tokens"]
    present: Bool[Tensor, " batch"] | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> "EncoderFeatures":
        """The same features on another device."""
        return EncoderFeatures(
            self.embedding.to(device, non_blocking=non_blocking),
            self.tokens.to(device, non_blocking=non_blocking),
            self.mask.to(device, non_blocking=non_blocking),
            None if self.present is None else self.present.to(device, non_blocking=non_blocking),
        )

    @property
    def known_embedding(self) -> Float[Tensor, "batch dim"]:
        """The embeddings, zero where the encoder is missing."""
        return self.embedding if self.present is None else self.embedding.masked_fill(~self.present[:, None], 0)

    def known(self) -> "EncoderFeatures":
        """The same features, with zeros where the encoder is missing, and all of its tokens masked out there."""
        if self.present is None:
            return self
        return replace(
            self,
            embedding=self.known_embedding,
            tokens=self.tokens.masked_fill(~self.present[:, None, None], 0),
            mask=self.mask & self.present[:, None],
        )

    def items(self, chosen: slice) -> "EncoderFeatures":
        """The features of some items, as views."""
        present = None if self.present is None else self.present[chosen]
        return EncoderFeatures(self.embedding[chosen], self.tokens[chosen], self.mask[chosen], present)


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


def presence(inputs: Sequence[EncoderFeatures]) -> Bool[Tensor, "batch encoders"]:
    """Which items have which encoders."""
    everywhere = torch.ones(len(inputs[0].embedding), dtype=torch.bool, device=inputs[0].embedding.device)
    return torch.stack([everywhere if each.present is None else each.present for each in inputs], dim=1)


def unit_summaries(inputs: Sequence[EncoderFeatures]) -> list[Float[Tensor, "batch _"]]:
    """Every encoder's summary tokens, of unit norm so that encoders of any scale compare; zero where it is missing."""
    return [F.normalize(features.known().tokens[:, 0].float(), dim=-1) for features in inputs]


def check_inputs(inputs: Sequence[EncoderFeatures], shapes: Sequence[InputShape], modality: Modality) -> None:
    """Refuses features whose number or widths differ from those that the fuser was made for.

    Raises:
        ConfigError: with the encoder's position, what was expected and what was got.
        DataError: an item lacks every encoder.
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
    if any(features.present is not None for features in inputs):
        lacking = (~presence(inputs).any(dim=1)).nonzero()
        if len(lacking):
            raise DataError(f"item {int(lacking[0])} of the batch lacks every encoder; leave it out, or give it one.")
