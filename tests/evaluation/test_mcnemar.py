import pytest
import torch
from evaluation.naive import random_ranks
from scipy.stats import binom

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import Ranks, mcnemar

CAPTION_IMAGE = torch.arange(60) % 30


@pytest.mark.parametrize("cutoff", [1, 5])
@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
def test_p_value_is_twice_the_binomial_tail(direction, cutoff):
    a, b = random_ranks(30, CAPTION_IMAGE, 0), random_ranks(30, CAPTION_IMAGE, 1)
    pairs = list(zip(getattr(a, direction).tolist(), getattr(b, direction).tolist(), strict=True))
    only_a = sum(first <= cutoff < second for first, second in pairs)
    only_b = sum(second <= cutoff < first for first, second in pairs)
    result = mcnemar(a, b, direction, cutoff)
    assert (result.only_a, result.only_b) == (only_a, only_b)
    tail = binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    assert result.p_value == pytest.approx(min(1.0, 2 * tail))


def test_same_answers_give_no_evidence():
    ranks = random_ranks(30, CAPTION_IMAGE, 0)
    assert mcnemar(ranks, ranks).p_value == 1


def test_images_without_captions_count_for_nothing():
    a = Ranks(torch.tensor([1.0, torch.nan]), torch.ones(1))
    b = Ranks(torch.tensor([2.0, torch.nan]), torch.ones(1))
    result = mcnemar(a, b, "image_to_text")
    assert (result.only_a, result.only_b) == (1, 0)


def test_bad_arguments_are_refused():
    a = random_ranks(30, CAPTION_IMAGE, 0)
    with pytest.raises(DataError, match="60 and 50 items"):
        mcnemar(a, random_ranks(30, CAPTION_IMAGE[:50], 0))
    with pytest.raises(ConfigError, match="cutoff"):
        mcnemar(a, a, cutoff=0)
