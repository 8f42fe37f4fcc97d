import json
import math

import pytest
import torch

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import Ranks, metrics, query_records, recall_curve

RANKS = Ranks(torch.tensor([1.0, math.nan, 4.0, math.inf]), torch.tensor([2.0, 1.5, 11.0]))


def test_curve_passes_through_the_metrics():
    curve = recall_curve(RANKS, [1, 5, 10, 11])
    result = metrics(RANKS)
    for side in ("image_to_text", "text_to_image"):
        part = getattr(result, side)
        assert getattr(curve, side)[:3] == (part.recall_1, part.recall_5, part.recall_10)
    assert curve.text_to_image[3] == 100
    assert curve.image_to_text[3] == pytest.approx(200 / 3)


@pytest.mark.parametrize("cutoffs", [[], [0, 1]])
def test_bad_cutoffs_are_refused(cutoffs):
    with pytest.raises(ConfigError, match="whole numbers from 1"):
        recall_curve(RANKS, cutoffs)


def test_records_name_each_query_and_leave_out_what_is_none():
    records = list(query_records(RANKS, ["a", "b", "c", "d"], ["a/0", "c/0", "d/0"]))
    assert [(record["query"], record["rank"]) for record in records] == [
        ("a", 1.0),
        ("c", 4.0),
        ("d", None),
        ("a/0", 2.0),
        ("c/0", 1.5),
        ("d/0", 11.0),
    ]
    json.dumps(records, allow_nan=False)


def test_ids_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="image_to_text has ranks of 4 items, got 1 ids"):
        list(query_records(RANKS, ["a"], ["a/0", "c/0", "d/0"]))
