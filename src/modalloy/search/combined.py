"""One question of several parts, whose scores spread differently."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from modalloy.search.standard_score import Spread, spread_of


class Combined(NamedTuple):
    """A question as one vector."""

    vector: Float[Tensor, "dim"]
    """What is searched for."""
    parts: Float[Tensor, "parts dim"]
    """What each part adds to the vector."""
    spread: Spread
    """Of the vector's scores."""


def combine(
    weights: Sequence[float], vectors: Float[Tensor, "parts dim"], sample: Float[Tensor, "sample dim"]
) -> Combined:
    """The mean of the parts' vectors by w_i / s_i, s_i being the deviation of the part's own scores.

    So a part counts as its weight says, however narrowly its scores lie. The absolute values of w_i / s_i are brought
    to a sum of 1: a single part stays as it is, and only the proportions of weights matter.

    Args:
        weights: one for each part, not 0.
        vectors: the parts' own.
        sample: vectors of the index.

    >>> combine([2.0, -2.0], torch.eye(2), torch.eye(2)).vector
    tensor([ 0.5000, -0.5000])
    """
    # However large or small weights are, nothing may overflow or vanish.
    largest = max(map(abs, weights))
    deviations = [spread_of(sample, part).deviation for part in vectors]
    ratios = [weight / largest / deviation for weight, deviation in zip(weights, deviations, strict=True)]
    total = sum(map(abs, ratios))
    parts = vectors * torch.tensor([ratio / total for ratio in ratios])[:, None]
    vector = parts.sum(0)
    return Combined(vector, parts, spread_of(sample, vector))
