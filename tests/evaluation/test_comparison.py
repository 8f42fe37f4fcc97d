import json
from statistics import fmean, stdev

import pytest
import torch
from evaluation.naive import random_ranks

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import (
    bootstrap_difference,
    bootstrap_interval,
    compare,
    headroom_taken,
    metrics,
    oracle,
)

CAPTION_IMAGE = torch.tensor([0, 0, 1, 3, 3, 3, 4])
N_IMAGES = 5


def runs(*seeds: int):
    return [random_ranks(N_IMAGES, CAPTION_IMAGE, seed) for seed in seeds]


SYSTEMS = {"clip": runs(1), "siglip": runs(2, 3), "mean": runs(4), "hada": runs(5, 6, 7)}


@pytest.fixture(scope="module")
def comparison():
    return compare(
        SYSTEMS,
        CAPTION_IMAGE,
        reference=["hada", "mean"],
        inputs=["clip", "siglip"],
        samples=100,
        seed=3,
        level=0.9,
    )


def test_rows_hold_means_spreads_and_intervals(comparison):
    assert list(comparison.systems) == list(SYSTEMS)
    for name, summary in comparison.systems.items():
        rsums = [metrics(ranks).rsum for ranks in SYSTEMS[name]]
        assert summary.metrics.rsum == pytest.approx(fmean(rsums))
        assert summary.metrics.text_to_image.mean_rank == pytest.approx(
            fmean(metrics(ranks).text_to_image.mean_rank for ranks in SYSTEMS[name])
        )
        assert summary.metrics.image_to_text.queries == 4
        assert summary.metrics.image_to_text.not_queries == 1
        assert summary.seeds == len(rsums)
        assert summary.spread == (pytest.approx(stdev(rsums)) if len(rsums) > 1 else None)
        interval = bootstrap_interval(SYSTEMS[name], CAPTION_IMAGE, samples=100, seed=3, level=0.9)
        assert (summary.rsum.value, summary.rsum.low, summary.rsum.high) == pytest.approx(
            (interval.value, interval.low, interval.high)
        )


def test_differences_are_those_of_the_paired_bootstrap(comparison):
    assert [(difference.a, difference.b) for difference in comparison.differences] == [
        *(("hada", name) for name in ("clip", "siglip", "mean")),
        *(("mean", name) for name in ("clip", "siglip")),
    ]
    for difference in comparison.differences:
        expected = bootstrap_difference(
            SYSTEMS[difference.a], SYSTEMS[difference.b], CAPTION_IMAGE, samples=100, seed=3, level=0.9
        )
        row = difference.to_dict()
        assert (row["rsum"], row["low"], row["high"]) == pytest.approx((expected.value, expected.low, expected.high))


def test_oracle_and_headroom_come_from_the_inputs(comparison):
    pairs = [[SYSTEMS["clip"][0], ranks] for ranks in SYSTEMS["siglip"]]
    bound = fmean(oracle(pair).rsum for pair in pairs)
    assert comparison.oracle.rsum == pytest.approx(bound)
    best = max(("clip", "siglip"), key=lambda name: comparison.systems[name].metrics.rsum)
    assert comparison.best_input == best
    for name, summary in comparison.systems.items():
        expected = headroom_taken(comparison.systems[best].metrics.rsum, bound, comparison.systems[name].metrics.rsum)
        assert summary.headroom == (None if name in ("clip", "siglip") else pytest.approx(expected))


def test_json_round_trip(comparison):
    plain = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert plain["systems"]["hada"]["image_to_text"].keys() >= {"R@1", "R@5", "R@10", "median_rank"}
    assert plain["differences"][0].keys() == {"a", "b", "rsum", "low", "high"}
    assert plain["inputs"] == ["clip", "siglip"]


def test_without_reference_and_inputs():
    comparison = compare({"only": runs(1)}, CAPTION_IMAGE, samples=10)
    assert comparison.differences == []
    assert comparison.oracle is None
    assert comparison.systems["only"].headroom is None
    assert comparison.to_dict()["oracle"] is None


def test_bad_arguments_are_refused():
    with pytest.raises(DataError, match="at least one system"):
        compare({}, CAPTION_IMAGE)
    with pytest.raises(ConfigError, match="no system is called 'hda'; the systems are clip"):
        compare(SYSTEMS, CAPTION_IMAGE, reference="hda")
    with pytest.raises(ConfigError, match="no system is called 'blip'"):
        compare(SYSTEMS, CAPTION_IMAGE, inputs=["blip"])
    with pytest.raises(DataError, match=r"\[2, 3\] runs"):
        compare(SYSTEMS, CAPTION_IMAGE, inputs=["siglip", "hada"], samples=10)
    with pytest.raises(ConfigError, match="level"):
        compare(SYSTEMS, CAPTION_IMAGE, samples=10, level=95.0)
    with pytest.raises(DataError, match="at least one run"):
        compare({"none": []}, CAPTION_IMAGE)
