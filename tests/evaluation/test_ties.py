import pytest
import torch
from evaluation.naive import assert_equal, both_directions, expected_first_rank, tables
from hypothesis import given

from modalloy.evaluation.blocks import own_items
from modalloy.evaluation.ties import first_rank, never_nan


@given(tables())
def test_first_rank_is_the_mean_over_all_orders(table):
    scores, caption_image = table
    own = own_items(caption_image, slice(0, scores.shape[0]), slice(0, scores.shape[1]))
    by_image, by_caption = both_directions(expected_first_rank, scores, caption_image)
    assert_equal(first_rank(scores, own), by_image)
    assert_equal(first_rank(scores.T, own.T), by_caption)


@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (1, 4), (2, 3), (5, 2)])
def test_first_of_several_tied_positives(positives, negatives):
    scores = torch.zeros(1, positives + negatives)
    own = torch.arange(positives + negatives)[None] < positives
    assert float(first_rank(scores, own)) == 1 + negatives / (positives + 1)


def test_never_nan_leaves_infinities():
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0])
    assert never_nan(values).tolist() == [-torch.inf, torch.inf, -torch.inf, 2.0]
