import math

import pytest
import torch
from evaluation.naive import TableScores, assert_equal, both_directions, expected_first_rank, tables
from hypothesis import given
from hypothesis import strategies as st

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import rank_average, rank_queries


def positions(scores: list[float]) -> list[float]:
    """Average place of each item among its equals; last place without a score."""
    scores = [-math.inf if math.isnan(score) else score for score in scores]
    return [
        float(len(scores))
        if score == -math.inf
        else 1 + sum(other > score for other in scores) + (sum(other == score for other in scores) - 1) / 2
        for score in scores
    ]


def averaged(tables: list[torch.Tensor]) -> torch.Tensor:
    """Minus the mean position of each item in each row, NaN where no table has a score."""
    means = torch.tensor([[positions(row) for row in table.tolist()] for table in tables]).mean(0)
    unscored = torch.stack([table.isnan() | (table == -math.inf) for table in tables]).all(0)
    return (-means.double()).masked_fill(unscored, math.nan)


@given(tables(), st.integers(0, 2**31), st.integers(1, 7))
def test_averages_positions_in_each_direction(table, seed, block):
    first, caption_image = table
    second = torch.randint(0, 3, first.shape, generator=torch.Generator().manual_seed(seed)).float()
    ranks = rank_average([TableScores(first), TableScores(second)], caption_image, block)
    by_image, _ = both_directions(expected_first_rank, averaged([first, second]), caption_image)
    _, by_caption = both_directions(expected_first_rank, averaged([first.T, second.T]).T, caption_image)
    assert_equal(ranks.image_to_text, by_image)
    assert_equal(ranks.text_to_image, by_caption)


@given(tables(nan=False))
def test_one_system_keeps_its_ranks(table):
    scores, caption_image = table
    single = rank_queries(TableScores(scores), caption_image)
    average = rank_average([TableScores(scores)], caption_image)
    assert_equal(average.image_to_text, single.image_to_text.tolist())
    assert_equal(average.text_to_image, single.text_to_image.tolist())


def test_known_positions():
    first = TableScores(torch.tensor([[0.9, 0.5, 0.1]]))
    second = TableScores(torch.tensor([[0.1, 0.2, 0.3]]))
    # Caption 0 stands at (1 + 3) / 2, caption 1 at (2 + 2) / 2 and caption 2 at (3 + 1) / 2.
    assert rank_average([first, second], torch.zeros(3, dtype=torch.int64)).image_to_text.tolist() == [1.0]


def test_bad_arguments_are_refused():
    scores = TableScores(torch.rand(3, 4))
    captions = torch.tensor([0, 1, 2, 2])
    with pytest.raises(DataError, match="same images and captions"):
        rank_average([scores, TableScores(torch.rand(4, 4))], captions)
    with pytest.raises(DataError, match="same images and captions"):
        rank_average([], captions)
    with pytest.raises(DataError, match="4 captions, got 3"):
        rank_average([scores], captions[:3])
    with pytest.raises(ConfigError, match="block"):
        rank_average([scores], captions, block=0)
