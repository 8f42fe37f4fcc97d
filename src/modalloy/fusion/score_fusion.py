"""Fusion without training: the weighted sum of the inputs' cosines, with equal or validation-tuned weights."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from modalloy.encoders import Modality
from modalloy.errors import ConfigError
from modalloy.fusion.base import Fuser
from modalloy.fusion.inputs import EncoderFeatures, InputShape, check_inputs
from modalloy.fusion.similarity import check_weights, fold, folded_slices


class ScoreFusion(Fuser):
    """Sums the inputs' cosines with fixed weights; its retrieval vector folds the inputs' embeddings.

    Args:
        weights: one per encoder, not negative; they are divided by their sum.
        shapes: the input encoders' widths.

    Raises:
        ConfigError: a weight is negative, not finite or missing, or all are zero.
    """

    weights: Float[Tensor, " encoders"]

    def __init__(self, weights: Sequence[float], shapes: Sequence[InputShape]) -> None:
        super().__init__()
        if len(weights) != len(shapes):
            raise ConfigError(f"expected one weight for each of {len(shapes)} encoders, got {len(weights)}.")
        check_weights(weights)
        self.shapes = tuple(shapes)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32) / sum(weights))

    @property
    def tokens_read(self) -> int | None:
        return 0

    @property
    def dim(self) -> int:
        return sum(shape.dim for shape in self.shapes)

    def parts(self) -> dict[str, tuple[slice, ...]]:
        slices = folded_slices([shape.dim for shape in self.shapes])
        return {f"input {position}": (where,) for position, where in enumerate(slices)}

    def embed(self, modality: Modality, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch dim"]:
        check_inputs(inputs, self.shapes, modality)
        return fold([features.known_embedding for features in inputs], self.weights)
