import pytest
import torch
from evaluation.naive import random_ranks

from modalloy.errors import DataError
from modalloy.evaluation import headroom_taken, metrics, oracle

CAPTION_IMAGE = torch.tensor([0, 0, 1, 3, 3, 3, 4])


def test_oracle_counts_queries_that_any_input_answers():
    inputs = [random_ranks(5, CAPTION_IMAGE, seed) for seed in range(3)]
    result = oracle(inputs)
    for direction in ("image_to_text", "text_to_image"):
        columns = list(zip(*(getattr(ranks, direction).tolist() for ranks in inputs), strict=True))
        queries = [column for column in columns if column[0] == column[0]]
        for cutoff, value in ((1, "recall_1"), (5, "recall_5"), (10, "recall_10")):
            share = sum(any(rank <= cutoff for rank in column) for column in queries) / len(queries)
            assert getattr(getattr(result, direction), value) == pytest.approx(100 * share)
    assert result.rsum >= max(metrics(ranks).rsum for ranks in inputs)


def test_inputs_of_other_queries_are_refused():
    with pytest.raises(DataError, match="same queries"):
        oracle([random_ranks(5, CAPTION_IMAGE, 0), random_ranks(6, CAPTION_IMAGE, 0)])
    with pytest.raises(DataError, match="same queries"):
        oracle([])


@pytest.mark.parametrize(("alloy", "share"), [(400.0, 0.0), (425.0, 0.25), (500.0, 1.0), (390.0, -0.1)])
def test_headroom_is_the_share_of_the_way(alloy, share):
    assert headroom_taken(400.0, 500.0, alloy) == pytest.approx(share)


def test_no_headroom_gives_no_share():
    assert headroom_taken(500.0, 500.0, 500.0) is None
