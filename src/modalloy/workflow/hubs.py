"""A fuser's ranks with hubs held back: gallery items that lie near every query lose what a bank of queries shows."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from modalloy.encoders import Modality
from modalloy.evaluation import EmbeddingScores, Ranks, nearest_neighbour_scores, tune_nearest_neighbours
from modalloy.evaluation.ranks import DIRECTIONS, rank_each_direction
from modalloy.fusion import Fuser, SplitFeatures

_NEIGHBOURS = (8, 32, 128)
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def held_back(system: str) -> str:
    """The name of a system with hubs held back.

    >>> held_back("alloy")
    'alloy, hubs held back'
    """
    return f"{system}, hubs held back"


@dataclass(frozen=True)
class _Vectors:
    """A fuser's retrieval vectors of a split."""

    image: Float[Tensor, "images dim"]
    text: Float[Tensor, "captions dim"]


def ranks_with_hubs_held_back(
    fuser: Fuser, bank: SplitFeatures, validation: SplitFeatures, evaluated: Sequence[SplitFeatures]
) -> list[Ranks]:
    """A fuser's ranks after nearest-neighbour normalisation, set on the validation items.

    Args:
        fuser: the system.
        bank: training items; their captions are the bank of queries for images, their images that for captions.
        validation: chooses how many neighbours count, and how much.
        evaluated: what to rank.
    """
    queries, chosen_by = _vectors(fuser, bank), _vectors(fuser, validation)
    settings = {
        direction: tune_nearest_neighbours(
            EmbeddingScores(chosen_by.image, chosen_by.text),
            _bank_scores(direction, chosen_by, queries),
            direction,
            validation.caption_image,
            [k for k in _NEIGHBOURS if k <= len(bank.image_rows)] or [1],
            _SHARES,
        )
        for direction in DIRECTIONS
    }
    ranks = []
    for split in evaluated:
        vectors = _vectors(fuser, split)
        scores = EmbeddingScores(vectors.image, vectors.text)
        corrected = {
            direction: nearest_neighbour_scores(
                scores, _bank_scores(direction, vectors, queries), direction, settings[direction]
            )
            for direction in DIRECTIONS
        }
        ranks.append(rank_each_direction(corrected, split.caption_image))
    return ranks


def _bank_scores(direction: str, gallery: _Vectors, queries: _Vectors) -> EmbeddingScores:
    if direction == "text_to_image":
        return EmbeddingScores(gallery.image, queries.text)
    return EmbeddingScores(queries.image, gallery.text)


def _vectors(fuser: Fuser, split: SplitFeatures) -> _Vectors:
    def embed(modality: Modality) -> Tensor:
        features = split.paired.image if modality == "image" else split.paired.text
        return fuser.embed_rows(features, split.image_rows if modality == "image" else split.caption_rows)

    return _Vectors(embed("image"), embed("text"))
