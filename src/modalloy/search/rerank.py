"""The second stage: the best answers, put in order by what looks at picture and text together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from modalloy.search.hit import Hit


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture that may have to be opened."""

    open: Callable[[], Image.Image]
    """Decodes it; an ImageError where it can't be."""
    sha256: str | None = None
    """Of its file, by which what was computed of it is found again; None for one that isn't kept."""


@runtime_checkable
class Reranker(Protocol):
    """What scores texts with pictures; used by one thread at a time."""

    global_weight: float
    """How much the first stage's score counts beside its own."""

    def __call__(self, texts: Sequence[str], pictures: Sequence[Picture]) -> Float[Tensor, "texts pictures"]:
        """The score of each text with each picture; NaN for a picture that can't be opened."""


def rerank(hits: Sequence[Hit], scores: Sequence[float], global_weight: float) -> list[Hit]:
    """The hits in the order of a second stage, those without a score of it behind, in their first order.

    Args:
        hits: what it looked at, and all others behind.
        scores: its score of the first hits; NaN for one that it couldn't look at.
        global_weight: how much the first stage's score counts.

    >>> [hit.id for hit in rerank([Hit("a", 0.9), Hit("b", 0.8), Hit("c", 0.7)], [math.nan, 2.0], 1.0)]
    ['b', 'a', 'c']
    """
    scored, others = [], []
    for hit, score in zip(hits, scores, strict=False):
        if math.isnan(score):
            others.append(hit)
        else:
            scored.append(replace(hit, rerank_score=global_weight * hit.score + score))
    scored.sort(key=lambda hit: hit.rerank_score or 0.0, reverse=True)
    return [*scored, *others, *hits[len(scores) :]]
