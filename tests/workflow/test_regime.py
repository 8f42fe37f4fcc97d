import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_encoders import Toy, toy_pairs

from modalloy.errors import ConfigError
from modalloy.fusion import TowerConfig
from modalloy.fusion.subset import subset
from modalloy.workflow.fuse import FusionFit
from modalloy.workflow.fusion_config import FusionConfig
from modalloy.workflow.regime import Regime, _sample, detect_regime

TRAIN = 60
NAMES = ["knows", "doesn't"]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return toy_pairs(tmp_path_factory.mktemp("regime"), {"train": TRAIN, "val": 40}, captions=3)


@pytest.fixture(scope="module")
def encoders():
    return [Toy(1, noise=1.5, known=range(TRAIN)), Toy(2, noise=1.5)]


@pytest.fixture(scope="module")
def paired(collection, encoders):
    return collection.paired(encoders)


def test_an_input_that_knows_the_training_pairs_is_told_from_one_that_does_not(paired):
    found = detect_regime(paired.split("train"), paired.split("val"), NAMES, samples=300)
    assert (found.verdict, found.pairs) == ("mixed", 40)
    knows, does_not = found.inputs
    assert (knows.verdict, does_not.verdict) == ("shared", "foreign")
    assert knows.difference.low > found.margin > does_not.difference.low
    assert knows.difference.value == pytest.approx(knows.train - knows.validation)
    for number in (knows.train, knows.validation, does_not.difference.high, 40):
        assert f"{number:.1f}".removesuffix(".0") in found.sentence()
    assert json.loads(json.dumps(found.to_dict()))["inputs"][0]["difference"]["low"] == knows.difference.low
    assert "\n" not in found.sentence() and found.sentence().startswith("Regime mixed: some inputs know")


def test_the_verdict_is_shared_or_foreign_where_the_inputs_agree(paired):
    train, validation = paired.split("train"), paired.split("val")
    # With a margin that nothing exceeds, or that everything does.
    assert detect_regime(train, validation, NAMES, margin=600.0, samples=50).verdict == "foreign"
    assert detect_regime(train, validation, NAMES, margin=-601.0, samples=50).verdict == "shared"
    # Pairs of the same kind are foreign, whichever is called training.
    others = [subset(validation, torch.arange(40) % 2 == half) for half in (0, 1)]
    assert detect_regime(*others, NAMES, samples=300).verdict == "foreign"


def test_both_galleries_are_of_one_size_with_a_caption_each(paired):
    train = paired.split("train")
    sample = _sample(train, 25, seed=3)
    assert len(sample.image_rows) == len(sample.caption_rows) == 25
    assert torch.equal(sample.caption_image, torch.arange(25))
    manifest = paired.manifest
    assert torch.equal(manifest.caption_image[sample.caption_rows], sample.image_rows)
    assert set((sample.caption_rows % 3).tolist()) == {0, 1, 2}
    assert torch.equal(_sample(train, 25, seed=3).caption_rows, sample.caption_rows)
    assert not torch.equal(_sample(train, 25, seed=4).image_rows, sample.image_rows)


def test_the_interval_is_that_of_two_independent_samples(paired):
    """Against a plain bootstrap of R@1, R@5, R@10 with loops over images."""
    train, validation = paired.split("train"), paired.split("val")
    found = detect_regime(train, validation, NAMES, samples=2000).inputs[1]
    generator, resampled = np.random.default_rng(0), []
    hits = []
    for place, split in enumerate((train, validation)):
        part = _sample(split, 40, seed=place)
        scores = part.input_scores()[1].score(slice(None), slice(None))
        ranks = [[1 + int((row > row[own]).sum()) for own, row in enumerate(matrix)] for matrix in (scores, scores.T)]
        hits.append([sum(side[k] <= cut for side in ranks for cut in (1, 5, 10)) for k in range(40)])
    for _ in range(2000):
        sums = [sum(each[k] for k in generator.integers(40, size=40)) * 100 / 40 for each in hits]
        resampled.append(sums[0] - sums[1])
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), abs=12)
    assert [found.train, found.validation] == pytest.approx([sum(each) * 100 / 40 for each in hits])


def test_each_input_needs_a_name(paired):
    with pytest.raises(ConfigError, match=r"a name for each of 2 inputs, got \['a'\]"):
        detect_regime(paired.split("train"), paired.split("val"), ["a"])


def test_a_fit_detects_it_only_when_asked(collection, encoders, tmp_path, caplog):
    config = FusionConfig(TowerConfig(token_dim=4, heads=1))
    caplog.set_level(logging.INFO, logger="modalloy.workflow.fuse")
    assert FusionFit(encoders, collection, config, tmp_path).regime is None
    stated = FusionFit(encoders, collection, replace(config, regime="shared"), tmp_path).regime
    assert stated == Regime("shared") and stated.sentence() == "Regime shared, as configured."
    assert not caplog.messages
    detected = FusionFit(encoders, collection, replace(config, regime="auto"), tmp_path).regime
    assert detected is not None and detected.verdict == "mixed"
    assert caplog.messages == [detected.sentence()]
    assert [each.name for each in detected.inputs] == ["toy-1", "toy-2"]
