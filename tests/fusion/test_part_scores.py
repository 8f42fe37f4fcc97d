import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import EmbeddingScores, WeightedScores, rank_queries
from modalloy.fusion.part_scores import PartScores


class Matrix:
    """Scores as they stand in a matrix."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.n_images, self.n_captions = values.shape

    def score(self, images, captions):
        return self.values[images, captions]


def toy(seed: int, parts: int, images: int = 30, captions: int = 2, decimals: int | None = None):
    generator = torch.Generator().manual_seed(seed)
    caption_image = torch.arange(images * captions) // captions
    values = torch.randn(parts, images, images * captions, generator=generator)
    values[:, caption_image, torch.arange(images * captions)] += 1.5
    # Rounded scores tie, and their sums tie up to the last bit.
    return [Matrix(each if decimals is None else each.round(decimals=decimals)) for each in values], caption_image


@given(
    seed=st.integers(0, 2**16),
    weights=st.lists(st.floats(0, 1), min_size=2, max_size=5),
    decimals=st.sampled_from([None, 0, 1]),
    held=st.booleans(),
)
@settings(max_examples=30)
def test_a_weighted_sum_ranks_as_weighted_scores_do_ties_included(seed, weights, decimals, held):
    parts, caption_image = toy(seed, len(weights), decimals=decimals)
    expected = rank_queries(WeightedScores(parts, weights), caption_image)
    ours = PartScores(parts, caption_image, held_bytes=2**30 if held else 0)
    ranks = rank_queries(ours.weighted(weights), caption_image)
    assert torch.equal(ranks.image_to_text, expected.image_to_text)
    assert torch.equal(ranks.text_to_image, expected.text_to_image)


def test_a_broken_score_never_wins_in_a_sum():
    parts, caption_image = toy(0, 2)
    parts[1].values[3, 0] = torch.nan
    ours = PartScores(parts, caption_image)
    for weights in ([0.5, 0.5], [1.0, 0.0]):
        expected = rank_queries(WeightedScores(parts, weights), caption_image)
        assert torch.equal(rank_queries(ours.weighted(weights), caption_image).text_to_image, expected.text_to_image)


@pytest.mark.parametrize("held_bytes", [0, 2**30])
def test_blocks_and_positives_are_of_each_part(held_bytes):
    parts, caption_image = toy(0, 3, images=300, captions=1)
    ours = PartScores(parts, caption_image, held_bytes)
    whole = torch.cat([ours.block(rows) for rows in ours.row_slices()], dim=1)
    assert torch.equal(whole, torch.stack([part.values for part in parts]))
    assert torch.equal(ours.positives(), torch.stack([part.values.diagonal() for part in parts]))


def test_what_cannot_be_weighed_is_refused():
    parts, caption_image = toy(0, 2)
    with pytest.raises(ConfigError, match="one part or more, got none"):
        PartScores([], caption_image)
    with pytest.raises(DataError, match="same images and captions"):
        PartScores([parts[0], EmbeddingScores(torch.eye(3), torch.eye(3))], caption_image)
    with pytest.raises(DataError, match="each of the 60 captions, got 59"):
        PartScores(parts, caption_image[1:])
    for weights in ([1.0], [0.5, float("nan")]):
        with pytest.raises(ConfigError, match="one finite weight for each"):
            PartScores(parts, caption_image).weighted(weights)
