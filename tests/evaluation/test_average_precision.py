import pytest
import torch
from evaluation.naive import TableScores, assert_equal, both_directions, expected_average_precision, tables
from hypothesis import given
from hypothesis import strategies as st

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import map_at_r


@given(tables(), st.integers(1, 7))
def test_average_precision_is_the_mean_over_all_orders(table, block):
    scores, caption_image = table
    precision = map_at_r(TableScores(scores), caption_image, block)
    by_image, by_caption = both_directions(expected_average_precision, scores, caption_image)
    assert_equal(precision.image_to_text, by_image)
    assert_equal(precision.text_to_image, by_caption)


def test_known_value_and_mean():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.0, 0.0, 0.0, 0.5]])
    precision = map_at_r(TableScores(scores), torch.tensor([0, 1, 0, 0]))
    # R = 3: a hit at 1, a miss at 2, a hit at 3; and R = 1: a miss.
    assert_equal(precision.image_to_text, [(1 + 2 / 3) / 3, 0.0])
    assert precision.to_dict()["image_to_text"] == pytest.approx(100 * (5 / 9) / 2)


def test_images_without_captions_are_left_out_of_the_mean():
    precision = map_at_r(TableScores(torch.eye(3)), torch.tensor([0, 1, 1]))
    assert precision.image_to_text.isnan().tolist() == [False, False, True]
    assert precision.to_dict()["image_to_text"] == pytest.approx(100 * (1 + 0.5 * (1 + 0.5)) / 2)


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigError, match="block"):
        map_at_r(TableScores(torch.eye(2)), torch.arange(2), block=-1)
    with pytest.raises(DataError, match="2 captions, got 1"):
        map_at_r(TableScores(torch.eye(2)), torch.arange(1))
