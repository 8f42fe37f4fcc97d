"""How much the vectors' similarity counts beside the local scores, chosen on validation items."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.errors import ConfigError
from modalloy.evaluation.metrics import direction_metrics
from modalloy.evaluation.ranks import DIRECTIONS, Direction
from modalloy.evaluation.reranking import rerank_ranks
from modalloy.search.depth import Fold
from modalloy.search.hierarchical import Stage
from modalloy.search.hierarchy_config import HierarchyConfig

WEIGHTS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""HACAN's, and larger ones: the less there is to train on, the less the local scores are to be trusted."""


def choose_global_weight(
    folds: Sequence[Fold], config: HierarchyConfig, weights: Sequence[float] = WEIGHTS
) -> tuple[float, dict[float, float]]:
    """Takes the `global_weight` with which the last stage has the highest RSum, of equal ones the smallest.

    The local scores are taken once, of all first candidates, and weighed anew with each weight.

    Args:
        folds: validation items.
        config: the numbers of candidates, and the weights of the local scores.
        weights: what to choose from.

    Returns:
        The weight, and each weight's RSum.

    Raises:
        ConfigError: there is no weight to choose from, or see `HierarchicalSearch`.

    >>> from modalloy.align import LocalConfig, Tokens
    >>> from modalloy.search import HeldTokens, HierarchicalSearch, Member, Side
    >>> tokens = HeldTokens({"high": Tokens(torch.eye(3)[:, None], torch.ones(3, 1, dtype=torch.bool))})
    >>> member = Member(Side(torch.eye(3), tokens), Side(torch.eye(3), tokens), LocalConfig(3, None, 3, None))
    >>> folds = [Fold(HierarchicalSearch(member), torch.arange(3))]
    >>> choose_global_weight(folds, HierarchyConfig(2, None))[0]
    0.2
    """
    if not weights:
        raise ConfigError("there must be a weight to choose from, got none.")
    rsums = dict.fromkeys(sorted(weights), 0.0)
    for direction in DIRECTIONS:
        each_fold = [_ranks(fold, direction, config, list(rsums)) for fold in folds]
        for weight, ranks in zip(rsums, zip(*each_fold, strict=True), strict=True):
            rsums[weight] += direction_metrics(torch.cat(ranks)).rsum
    return max(rsums, key=rsums.__getitem__), rsums


def _ranks(
    fold: Fold, direction: Direction, config: HierarchyConfig, weights: Sequence[float]
) -> Iterator[Float[Tensor, "queries"]]:
    """A fold's ranks with each weight."""
    images, captions = len(fold.search.image_vectors), len(fold.caption_image)
    everything = config.focal_candidates or (captions if direction == "image_to_text" else images)
    wanted = None if config.cross_candidates is None else everything
    found, *local = fold.search(direction, replace(config, cross_candidates=wanted, global_weight=0.0))
    candidates = found.candidates
    focal, *whole = (_in_order_of(candidates, stage) for stage in local)
    for weight in weights:
        scores = (weight * found.scores + focal).masked_fill(candidates < 0, -torch.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : config.cross_candidates]
        if whole:
            scores = scores + (whole[0] - focal)
        chosen, scores = candidates.gather(1, order), scores.gather(1, order)
        yield rerank_ranks(chosen, scores, fold.caption_image, images, direction)


def _in_order_of(candidates: Int[Tensor, "queries candidates"], stage: Stage) -> Float[Tensor, "queries candidates"]:
    """A stage's scores in the order of other candidates; -inf where it dropped one, whose tokens are no numbers."""
    found, order = stage.candidates.sort(dim=1)
    places = torch.searchsorted(found, candidates).clamp(max=found.shape[1] - 1)
    scores = stage.scores.gather(1, order).gather(1, places)
    return scores.masked_fill(found.gather(1, places) != candidates, -torch.inf)
