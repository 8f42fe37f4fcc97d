"""From ranks to the numbers of a results table: R@K, median and mean rank, RSum."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from modalloy.errors import DataError
from modalloy.evaluation.ranks import Ranks

CUTOFFS = (1, 5, 10)


@dataclass(frozen=True)
class Metrics:
    """Retrieval in one direction."""

    recall_1: float
    """Percentage of queries whose (expected) rank is at most 1."""
    recall_5: float
    """Percentage of queries whose (expected) rank is at most 5."""
    recall_10: float
    """Percentage of queries whose (expected) rank is at most 10."""
    median_rank: float
    """Median rank of the first positive."""
    mean_rank: float
    """Mean rank of the first positive; infinite if one is out of the candidates."""
    queries: int
    """Number of queries."""
    not_queries: int = 0
    """Items that are no query since they have no positive (images without a caption)."""

    @property
    def rsum(self) -> float:
        """R@1 + R@5 + R@10 of this direction, at most 300."""
        return self.recall_1 + self.recall_5 + self.recall_10

    def to_dict(self) -> dict[str, float | int | None]:
        """Return the fields under their usual names; None for an infinite rank."""
        ranks = {"median_rank": self.median_rank, "mean_rank": self.mean_rank}
        return {
            "R@1": self.recall_1,
            "R@5": self.recall_5,
            "R@10": self.recall_10,
            **{name: rank if math.isfinite(rank) else None for name, rank in ranks.items()},
            "queries": self.queries,
            "not_queries": self.not_queries,
        }


@dataclass(frozen=True)
class RetrievalMetrics:
    """Retrieval in both directions."""

    image_to_text: Metrics
    """Images as queries, captions as gallery."""
    text_to_image: Metrics
    """Captions as queries, images as gallery."""

    @property
    def rsum(self) -> float:
        """Sum of R@1, R@5 and R@10 of both directions, at most 600."""
        return self.image_to_text.rsum + self.text_to_image.rsum

    def to_dict(self) -> dict[str, dict[str, float | int | None] | float]:
        """Return `{"image_to_text": {"R@1": ...}, "text_to_image": {...}, "rsum": ...}`."""
        return {
            "image_to_text": self.image_to_text.to_dict(),
            "text_to_image": self.text_to_image.to_dict(),
            "rsum": self.rsum,
        }


def metrics(ranks: Ranks) -> RetrievalMetrics:
    """Summarise ranks; a query is a hit at K when its expected rank is at most K.

    Raises:
        DataError: a direction has no query.

    >>> import torch
    >>> result = metrics(Ranks(torch.tensor([1.0, 6.0]), torch.tensor([1.0, 2.0])))
    >>> result.image_to_text.recall_5, result.text_to_image.recall_5, result.rsum
    (50.0, 100.0, 450.0)
    """
    return RetrievalMetrics(direction_metrics(ranks.image_to_text), direction_metrics(ranks.text_to_image))


def direction_metrics(ranks: Float[Tensor, "queries"]) -> Metrics:
    """Summarise the ranks of one direction; NaN marks what is no query.

    Raises:
        DataError: there is no query.

    >>> import torch
    >>> direction_metrics(torch.tensor([1.0, 6.0])).rsum
    200.0
    """
    queries = queries_among(ranks)
    valid = ranks[~ranks.isnan()].double().sort().values
    return Metrics(
        recall_1=recall(ranks, 1),
        recall_5=recall(ranks, 5),
        recall_10=recall(ranks, 10),
        median_rank=float((valid[(queries - 1) // 2] + valid[queries // 2]) / 2),
        mean_rank=float(valid.mean()),
        queries=queries,
        not_queries=len(ranks) - queries,
    )


def recall(ranks: Float[Tensor, "queries"], cutoff: int) -> float:
    """Percentage of the queries with a rank of at most `cutoff`; NaN marks what is no query.

    >>> import torch
    >>> recall(torch.tensor([1.0, 1.5, 7.0, torch.nan]), 1)
    33.33333333333333
    """
    return 100 * float((ranks <= cutoff).double().sum() / queries_among(ranks))


def queries_among(ranks: Float[Tensor, "queries"]) -> int:
    """Count the entries that are queries.

    Raises:
        DataError: there is none.
    """
    count = int((~ranks.isnan()).sum())
    if not count:
        raise DataError(f"no query to evaluate: none of the {len(ranks)} items has a positive")
    return count
