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
from modalloy.search.hierarchical import HierarchicalSearch, HierarchyConfig, Stage

WEIGHTS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""HACAN's, and larger ones: the less there is to train on, the less the local scores are to be trusted."""


def choose_global_weight(
    search: HierarchicalSearch,
    caption_image: Int[Tensor, "captions"],
    config: HierarchyConfig,
    weights: Sequence[float] = WEIGHTS,
) -> tuple[float, dict[float, float]]:
    """Takes the `global_weight` with which the last stage has the highest RSum, of equal ones the smallest.

    The local scores are taken once, of all first candidates, and weighed anew with each weight.

    Args:
        search: validation items.
        caption_image: place of each caption's image.
        config: the numbers of candidates, and the weights of the local scores.
        weights: what to choose from.

    Returns:
        The weight, and each weight's RSum.

    Raises:
        ConfigError: there is no weight to choose from, or see `HierarchicalSearch`.

    >>> from modalloy.align import Tokens
    >>> from modalloy.search.hierarchical import Side
    >>> from modalloy.search.token_source import HeldTokens
    >>> tokens = HeldTokens({"high": Tokens(torch.eye(3)[:, None], torch.ones(3, 1, dtype=torch.bool))})
    >>> search = HierarchicalSearch(Side(torch.eye(3), tokens), Side(torch.eye(3), tokens))
    >>> choose_global_weight(search, torch.arange(3), HierarchyConfig(2, None))[0]
    0.2
    """
    if not weights:
        raise ConfigError("there must be a weight to choose from, got none.")
    rsums = dict.fromkeys(sorted(weights), 0.0)
    for direction in DIRECTIONS:
        for weight, ranks in _ranks(search, caption_image, direction, config, list(rsums)):
            rsums[weight] += direction_metrics(ranks).rsum
    return max(rsums, key=rsums.__getitem__), rsums


def _ranks(
    search: HierarchicalSearch,
    caption_image: Int[Tensor, "captions"],
    direction: Direction,
    config: HierarchyConfig,
    weights: Sequence[float],
) -> Iterator[tuple[float, Float[Tensor, "queries"]]]:
    everything = None if config.second is None else (config.first or _items(search, direction))
    found, *local = search(direction, replace(config, second=everything, global_weight=0.0))
    candidates = found.candidates
    focal, *whole = (_in_order_of(candidates, stage) for stage in local)
    images = len(search.images.vectors)
    for weight in weights:
        scores = (weight * found.scores + focal).masked_fill(candidates < 0, -torch.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : config.second]
        if whole:
            scores = scores + (whole[0] - focal)
        chosen, scores = candidates.gather(1, order), scores.gather(1, order)
        yield weight, rerank_ranks(chosen, scores, caption_image, images, direction)


def _items(search: HierarchicalSearch, direction: Direction) -> int:
    return len((search.captions if direction == "image_to_text" else search.images).vectors)


def _in_order_of(candidates: Int[Tensor, "queries candidates"], stage: Stage) -> Float[Tensor, "queries candidates"]:
    """A stage's scores in the order of other candidates, which are the same ones."""
    places = candidates.argsort(dim=1).argsort(dim=1)
    return stage.scores.gather(1, stage.candidates.argsort(dim=1)).gather(1, places)
