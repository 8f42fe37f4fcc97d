"""Ranks after a second stage that reorders only some candidates of each query."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.blocks import check_captions
from modalloy.evaluation.ranks import DIRECTIONS, Direction
from modalloy.evaluation.ties import first_rank


def rerank_ranks(
    candidates: Int[Tensor, "queries candidates"],
    candidate_scores: Float[Tensor, "scored_queries scored_candidates"],
    caption_image: Int[Tensor, "captions"],
    n_images: int,
    direction: Direction,
) -> Float[Tensor, "queries"]:
    """Rank the truth among each query's re-scored candidates; fallen out it is a miss, of infinite rank.

    Ties follow the rule of `rank_queries`. A candidate with a NaN score never scores, as if it had fallen
    out. An image without captions is no query: its rank is NaN. Two directions make one `Ranks`.

    Args:
        candidates: caption rows for each image, or image rows for each caption; -1 fills an empty place.
        candidate_scores: the second stage's score of each candidate, in the same shape.
        caption_image: row of each caption's image.
        n_images: number of images.
        direction: what the queries are: "image_to_text" or "text_to_image".

    Raises:
        ConfigError: the direction is another.
        DataError: shapes don't match, a candidate doesn't exist, or a query has one twice.

    >>> found = rerank_ranks(torch.tensor([[1, 0], [0, 2]]), torch.tensor([[0.1, 0.7], [0.9, 0.2]]),
    ...                      torch.tensor([0, 1]), n_images=3, direction="text_to_image")
    >>> found
    tensor([1., inf], dtype=torch.float64)
    """
    if direction not in DIRECTIONS:
        raise ConfigError(f"direction must be image_to_text or text_to_image, got {direction!r}")
    image_of = check_captions(caption_image, n_images, len(caption_image)).to(candidates.device)
    by_image = direction == "image_to_text"
    n_queries, n_items = (n_images, len(image_of)) if by_image else (len(image_of), n_images)
    _check_candidates(candidates, candidate_scores, n_queries, n_items)
    query = torch.arange(n_queries, device=candidates.device)[:, None]
    matches = image_of[candidates.clamp(min=0)] == query if by_image else candidates == image_of[:, None]
    dead = (candidates < 0) | candidate_scores.isnan() | (candidate_scores == -torch.inf)
    positive = matches & ~dead
    ranks = first_rank(candidate_scores.masked_fill(dead, -torch.inf), positive)
    ranks[~positive.any(1)] = torch.inf
    if by_image:
        ranks[image_of.bincount(minlength=n_images) == 0] = torch.nan
    return ranks.cpu()


def _check_candidates(
    candidates: Int[Tensor, "..."], scores: Float[Tensor, "..."], n_queries: int, n_items: int
) -> None:
    """Check the shapes, the range and that no candidate comes twice."""
    if candidates.ndim != 2 or candidates.shape != scores.shape or len(candidates) != n_queries:
        raise DataError(
            f"candidates and their scores must both be arrays of ({n_queries} queries, candidates), got "
            f"{tuple(candidates.shape)} and {tuple(scores.shape)}"
        )
    if not candidates.shape[1]:
        raise DataError("each query must have at least one place for a candidate, got none")
    if bool(((candidates < -1) | (candidates >= n_items)).any()):
        raise DataError(
            f"candidates must be rows from 0 to {n_items - 1}, or -1 for an empty place, got "
            f"{int(candidates.min())} to {int(candidates.max())}"
        )
    ordered = candidates.sort(dim=1).values
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(1).nonzero()
    if len(twice):
        raise DataError(f"a query must have each candidate once, but query {int(twice[0])} has one twice")
