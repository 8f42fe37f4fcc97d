"""Fusion without training: the weighted sum of the inputs' cosines, with equal or validation-tuned weights."""

import math
from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.encoders import Modality
from modalloy.errors import ConfigError
from modalloy.evaluation import EmbeddingScores, metrics, rank_queries
from modalloy.evaluation.scores import WeightedScores
from modalloy.fusion.base import Fuser
from modalloy.fusion.inputs import EncoderFeatures, InputShape, check_inputs
from modalloy.fusion.similarity import fold


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
        if not all(0 <= weight < math.inf for weight in weights) or not sum(weights) > 0:
            raise ConfigError(f"weights must be finite, not negative and not all zero, got {list(weights)}.")
        self.shapes = tuple(shapes)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32) / sum(weights))

    @property
    def reads_tokens(self) -> bool:
        return False

    @property
    def dim(self) -> int:
        return sum(shape.dim for shape in self.shapes)

    def embed(self, modality: Modality, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch dim"]:
        check_inputs(inputs, self.shapes, modality)
        return fold([features.known_embedding for features in inputs], self.weights)


def simplex_grid(inputs: int, steps: int) -> list[tuple[float, ...]]:
    """All weights in multiples of 1/`steps` that sum to 1, the even ones first among equals.

    >>> simplex_grid(2, 2)
    [(0.5, 0.5), (0.0, 1.0), (1.0, 0.0)]
    """
    grid = [counts for counts in product(range(steps + 1), repeat=inputs) if sum(counts) == steps]
    grid.sort(key=lambda counts: (max(counts), counts))
    return [tuple(count / steps for count in counts) for counts in grid]


def tune_weights(
    image_embeddings: Sequence[Float[Tensor, "images _"]],
    text_embeddings: Sequence[Float[Tensor, "captions _"]],
    caption_image: Int[Tensor, " captions"],
    steps: int = 20,
) -> tuple[float, ...]:
    """The weights of the inputs' cosines with the best RSum on the given (validation) items.

    All weights in multiples of 1/`steps` are tried; among equals the more even weights win.

    Args:
        image_embeddings: unit-norm image embeddings, one matrix per encoder.
        text_embeddings: unit-norm caption embeddings, one matrix per encoder.
        caption_image: the row of each caption's image.
        steps: fineness of the grid.
    """
    scores = [EmbeddingScores(image, text) for image, text in zip(image_embeddings, text_embeddings, strict=True)]

    def rsum(weights: tuple[float, ...]) -> float:
        return metrics(rank_queries(WeightedScores(scores, weights), caption_image)).rsum

    return max(simplex_grid(len(scores), steps), key=rsum)
