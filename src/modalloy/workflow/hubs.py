"""A fuser's ranks with hubs held back: gallery items that lie near every query lose what a bank of queries shows."""

from torch import Tensor

from modalloy.evaluation import EmbeddingScores, Ranks, nearest_neighbour_scores, tune_nearest_neighbours
from modalloy.evaluation.ranks import DIRECTIONS, Direction, rank_each_direction
from modalloy.fusion import Fuser, SplitFeatures

_NEIGHBOURS = (8, 32, 128)
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def held_back(system: str) -> str:
    """The name of a system with hubs held back.

    >>> held_back("alloy")
    'alloy, hubs held back'
    """
    return f"{system}, hubs held back"


def ranks_with_hubs_held_back(
    fuser: Fuser, bank: SplitFeatures, validation: SplitFeatures, evaluated: SplitFeatures
) -> Ranks:
    """A fuser's ranks after nearest-neighbour normalisation, set on the validation items.

    Args:
        fuser: the system.
        bank: training items; their captions are the bank of queries for images, their images that for captions.
        validation: chooses how many neighbours count, and how much.
        evaluated: what to rank.
    """
    queries, chosen_by, ranked = (split.vectors(fuser) for split in (bank, validation, evaluated))
    neighbours = [k for k in _NEIGHBOURS if k <= len(bank.image_rows)] or [1]
    corrected = {}
    for direction in DIRECTIONS:
        settings = tune_nearest_neighbours(
            EmbeddingScores(*chosen_by),
            _bank_scores(direction, chosen_by, queries),
            direction,
            validation.caption_image,
            neighbours,
            _SHARES,
        )
        scores, with_bank = EmbeddingScores(*ranked), _bank_scores(direction, ranked, queries)
        corrected[direction] = nearest_neighbour_scores(scores, with_bank, direction, settings)
    return rank_each_direction(corrected, evaluated.caption_image)


def _bank_scores(
    direction: Direction, gallery: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor]
) -> EmbeddingScores:
    """The scores of a bank's queries with the gallery of a direction; both as image and text vectors."""
    if direction == "text_to_image":
        return EmbeddingScores(gallery[0], queries[1])
    return EmbeddingScores(queries[0], gallery[1])
