"""Local scores of each query with its own candidates, whose tokens are read block by block."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.align.cross_attention import CrossAttention
from modalloy.align.cross_layer import Levels, Term, candidate_cross_layer_similarity, cross_layer_similarity
from modalloy.align.local_similarity import ReusedTokens
from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.ranks import DIRECTIONS, Direction
from modalloy.search.token_source import TokenSource

ITEM_BLOCK = 1024
# What a pair on its own costs, compared with one among all pairs of a block.
_COST_OF_A_PAIR = 3


@torch.no_grad()
def candidate_scores(
    queries: Levels,
    items: TokenSource,
    candidates: Int[Tensor, "queries candidates"],
    direction: Direction,
    attention: CrossAttention,
    terms: Sequence[Term],
    item_block: int = ITEM_BLOCK,
) -> Float[Tensor, "queries candidates"]:
    """Scores each query with its own candidates, as `candidate_cross_layer_similarity` does.

    Every candidate's tokens are read once, however many queries have it; those of `item_block` items are in memory.

    Args:
        queries: tokens of the queries, mapped by the local branch.
        items: where those of the candidates come from.
        candidates: places in `items`; -1 fills an empty place.
        direction: what the queries are.
        attention: how tokens attend to each other.
        terms: what is added up.
        item_block: how many items are read at once.

    Returns:
        The score of each candidate; -inf in an empty place.

    Raises:
        ConfigError: `item_block` isn't positive, or the direction is another.
        DataError: a candidate doesn't exist, there isn't one row for each query, or a level is missing.
    """
    _check(queries, items, candidates, direction, item_block)
    by_image = direction == "image_to_text"
    levels = {term.text if by_image else term.image for term in terms}
    queries = _reused(queries)
    scores = torch.full(candidates.shape, -torch.inf)
    # One entry more, which -1 reaches and which never changes.
    place = torch.full((len(items) + 1,), -1)
    wanted = candidates[candidates >= 0].unique()
    for start in range(0, len(wanted), item_block):
        block = wanted[start : start + item_block]
        place[block] = torch.arange(len(block))
        within = place[candidates]
        place[block] = -1
        read = _reused(items.read(block, levels))
        images, captions = (queries, read) if by_image else (read, queries)
        here = within >= 0
        if int(here.sum()) * _COST_OF_A_PAIR < len(candidates) * len(block):
            device = next(iter(read.values())).mask.device
            found = candidate_cross_layer_similarity(
                images, captions, within.to(device), direction, attention, terms
            ).to("cpu", scores.dtype)
        else:
            every = cross_layer_similarity(images, captions, attention, terms).to("cpu", scores.dtype)
            found = (every if by_image else every.T).gather(1, within.clamp(min=0))
        scores = torch.where(here, found, scores)
    return scores


def _reused(levels: Levels) -> Levels:
    return {level: ReusedTokens(tokens.values, tokens.mask) for level, tokens in levels.items()}


def _check(queries: Levels, items: TokenSource, candidates: Tensor, direction: str, item_block: int) -> None:
    if direction not in DIRECTIONS:
        raise ConfigError(f"direction must be image_to_text or text_to_image, got {direction!r}")
    if item_block < 1:
        raise ConfigError(f"item_block must be at least 1, got {item_block}")
    sizes = {len(tokens) for tokens in queries.values()}
    if sizes != {len(candidates)}:
        raise DataError(f"each query must have a row of candidates, got {len(candidates)} rows for {sorted(sizes)}")
    if bool(((candidates < -1) | (candidates >= len(items))).any()):
        raise DataError(
            f"candidates must be places from 0 to {len(items) - 1}, or -1 for an empty one, got "
            f"{int(candidates.min())} to {int(candidates.max())}"
        )
