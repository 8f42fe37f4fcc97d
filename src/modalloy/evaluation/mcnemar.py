"""McNemar's exact test: do two systems differ in which queries they answer?"""

from dataclasses import dataclass

import torch
from scipy.stats import binomtest

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.ranks import DIRECTIONS, Direction, Ranks


@dataclass(frozen=True)
class McNemar:
    """Queries that one of two systems answers and the other doesn't, and the exact test of their balance."""

    only_a: int
    """Queries that the first system alone answers."""
    only_b: int
    """Queries that the second system alone answers."""
    p_value: float
    """Two-sided p-value of the binomial test; 1 if the systems answer the same queries."""


def mcnemar(a: Ranks, b: Ranks, direction: Direction = "text_to_image", cutoff: int = 1) -> McNemar:
    """Test exactly whether `a` and `b` answer equally many queries at `cutoff` (McNemar, 1947).

    Queries are taken as independent; captions of one image aren't quite, so for text to image the clustered
    `bootstrap_difference` is the safer word.

    Raises:
        ConfigError: an unknown direction or a cutoff below 1.
        DataError: the two don't rank the same queries.

    >>> a, b = Ranks(torch.ones(1), torch.ones(6)), Ranks(torch.ones(1), torch.full((6,), 2.0))
    >>> mcnemar(a, b)
    McNemar(only_a=6, only_b=0, p_value=0.03125)
    """
    if direction not in DIRECTIONS:
        raise ConfigError(f"direction must be image_to_text or text_to_image, got {direction!r}")
    if cutoff < 1:
        raise ConfigError(f"cutoff must be at least 1, got {cutoff}")
    first, second = getattr(a, direction), getattr(b, direction)
    if len(first) != len(second) or not torch.equal(first.isnan(), second.isnan()):
        raise DataError(
            f"McNemar's test needs the same queries twice, got {direction} ranks of {len(first)} and "
            f"{len(second)} items, or other items without a query"
        )
    hit_a, hit_b = first <= cutoff, second <= cutoff
    only_a, only_b = int((hit_a & ~hit_b).sum()), int((hit_b & ~hit_a).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return McNemar(only_a, only_b, float(p_value))
