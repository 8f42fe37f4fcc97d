import math
from statistics import fmean, median

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalloy.errors import DataError
from modalloy.evaluation import Ranks, metrics
from modalloy.evaluation.metrics import recall

RANKS = st.lists(st.integers(2, 40).map(lambda twice: twice / 2), min_size=1, max_size=12)


@given(RANKS, RANKS, st.integers(0, 3))
def test_metrics_are_plain_counts(images, captions, without):
    ranks = Ranks(
        torch.tensor([*images, *[math.nan] * without], dtype=torch.float64),
        torch.tensor(captions, dtype=torch.float64),
    )
    result = metrics(ranks)
    for side, values in ((result.image_to_text, images), (result.text_to_image, captions)):
        for cutoff, value in ((1, side.recall_1), (5, side.recall_5), (10, side.recall_10)):
            assert value == pytest.approx(100 * sum(rank <= cutoff for rank in values) / len(values))
        assert side.median_rank == median(values)
        assert side.mean_rank == pytest.approx(fmean(values))
        assert side.queries == len(values)
    assert result.image_to_text.not_queries == without
    plain = result.to_dict()
    sides = (plain["image_to_text"], plain["text_to_image"])
    assert plain["rsum"] == pytest.approx(sum(side[name] for side in sides for name in ("R@1", "R@5", "R@10")))


def test_expected_rank_between_cutoffs_is_a_miss():
    assert recall(torch.tensor([1.0, 1.5, 2.0]), 1) == pytest.approx(100 / 3)


def test_infinite_ranks_are_misses_and_none_in_json():
    side = metrics(Ranks(torch.tensor([1.0, math.inf, math.inf]), torch.ones(1))).image_to_text
    assert side.recall_10 == pytest.approx(100 / 3)
    assert side.to_dict()["median_rank"] is None


def test_no_query_is_refused():
    with pytest.raises(DataError, match="none of the 2 items has a positive"):
        metrics(Ranks(torch.full((2,), torch.nan), torch.ones(1)))
