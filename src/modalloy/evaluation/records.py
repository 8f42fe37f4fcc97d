"""What a report shows beside the table: recall curves and the rank of every single query."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.metrics import recall
from modalloy.evaluation.ranks import DIRECTIONS, Ranks


@dataclass(frozen=True)
class RecallCurve:
    """Recall against the number of results looked at, in percent."""

    cutoffs: tuple[int, ...]
    """Numbers of results."""
    image_to_text: tuple[float, ...]
    """R@K of the image queries at each cutoff."""
    text_to_image: tuple[float, ...]
    """R@K of the caption queries at each cutoff."""


def recall_curve(ranks: Ranks, cutoffs: Sequence[int]) -> RecallCurve:
    """Return R@K at each cutoff, in both directions.

    Raises:
        ConfigError: no cutoffs, or one below 1.
        DataError: a direction has no query.

    >>> import torch
    >>> recall_curve(Ranks(torch.tensor([1.0, 3.0]), torch.tensor([2.0])), [1, 2, 3]).image_to_text
    (50.0, 50.0, 100.0)
    """
    if not cutoffs or min(cutoffs) < 1:
        raise ConfigError(f"cutoffs must be whole numbers from 1, got {list(cutoffs)}")
    curves = (tuple(recall(getattr(ranks, side), cutoff) for cutoff in cutoffs) for side in DIRECTIONS)
    return RecallCurve(tuple(cutoffs), *curves)


def query_records(
    ranks: Ranks, image_ids: Sequence[str], caption_ids: Sequence[str]
) -> Iterator[dict[str, str | float | None]]:
    """Yield direction, query id and rank of every query, for JSON; the rank is None where the truth fell out.

    Raises:
        DataError: not one id for each image and caption.

    >>> import torch
    >>> list(query_records(Ranks(torch.tensor([2.0]), torch.tensor([1.0])), ["boat"], ["boat/0"]))[0]
    {'direction': 'image_to_text', 'query': 'boat', 'rank': 2.0}
    """
    for direction, ids in zip(DIRECTIONS, (image_ids, caption_ids), strict=True):
        items = len(getattr(ranks, direction))
        if len(ids) != items:
            raise DataError(f"{direction} has ranks of {items} items, got {len(ids)} ids for them")
    for direction, ids in zip(DIRECTIONS, (image_ids, caption_ids), strict=True):
        for query, rank in zip(ids, getattr(ranks, direction).tolist(), strict=True):
            if not math.isnan(rank):
                yield {"direction": direction, "query": query, "rank": rank if math.isfinite(rank) else None}
