"""Fusion without training: the weighted sum of the inputs' cosines, with equal or validation-tuned weights."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.encoders import Modality
from modalloy.errors import ConfigError
from modalloy.evaluation import EmbeddingScores
from modalloy.fusion.base import Fuser
from modalloy.fusion.inputs import EncoderFeatures, InputShape, check_inputs
from modalloy.fusion.part_scores import PartScores
from modalloy.fusion.similarity import check_weights, fold
from modalloy.fusion.simplex import STEPS, best_weights


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

    def embed(self, modality: Modality, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch dim"]:
        check_inputs(inputs, self.shapes, modality)
        return fold([features.known_embedding for features in inputs], self.weights)


def tune_weights(
    image_embeddings: Sequence[Float[Tensor, "images _"]],
    text_embeddings: Sequence[Float[Tensor, "captions _"]],
    caption_image: Int[Tensor, " captions"],
    steps: int = STEPS,
) -> tuple[float, ...]:
    """The weights of the inputs' cosines with the best RSum on the given (validation) items.

    See `best_weights`; among equals the more even weights win.

    Args:
        image_embeddings: unit-norm image embeddings, one matrix per encoder.
        text_embeddings: unit-norm caption embeddings, one matrix per encoder.
        caption_image: the row of each caption's image.
        steps: fineness of the weights, which are multiples of 1/`steps`.
    """
    scores = [EmbeddingScores(image, text) for image, text in zip(image_embeddings, text_embeddings, strict=True)]
    return best_weights(PartScores(scores, caption_image), steps)
