"""The tie rule: where a query's first positive stands when ties are ordered at random."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


def expected_rank(
    above: Shaped[Tensor, "queries"], tied: Shaped[Tensor, "queries"], positives: Shaped[Tensor, "queries"]
) -> Float[Tensor, "queries"]:
    """Expected rank of the first of `positives` items that share a score with `tied` negatives.

    Ordered uniformly at random, each tied negative comes before all the positives with probability
    1 / (positives + 1), so the rank is 1 + above + tied / (positives + 1).

    Args:
        above: number of negatives that score higher than the query's best positive.
        tied: number of negatives that score the same.
        positives: number of positives at that score, at least 1.

    >>> expected_rank(torch.tensor([3]), torch.tensor([1]), torch.tensor([1]))
    tensor([4.5000], dtype=torch.float64)
    """
    return 1 + above.double() + tied.double() / (positives.double() + 1)


def first_rank(
    scores: Float[Tensor, "queries items"], positive: Bool[Tensor, "queries items"]
) -> Float[Tensor, "queries"]:
    """Expected rank of each query's first positive among whole rows of scores.

    A NaN score counts as minus infinity; a query whose positives all score so stands last, at the number of
    items; a query without a positive is none and gets NaN.

    >>> first_rank(torch.tensor([[0.2, 0.9, 0.2]]), torch.tensor([[True, False, False]]))
    tensor([2.5000], dtype=torch.float64)
    """
    scores = never_nan(scores)
    best = scores.masked_fill(~positive, -torch.inf).amax(1, keepdim=True)
    level = scores == best
    above = ((scores > best) & ~positive).sum(1)
    rank = expected_rank(above, (level & ~positive).sum(1), (level & positive).sum(1))
    rank[best[:, 0] == -torch.inf] = scores.shape[1]
    rank[~positive.any(1)] = torch.nan
    return rank


def never_nan(scores: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the scores with minus infinity for NaN, so that a broken score never wins."""
    return torch.where(scores.isnan(), -torch.inf, scores)
