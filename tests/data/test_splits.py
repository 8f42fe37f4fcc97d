import hashlib
import json
import logging
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalloy.data import Item, Manifest
from modalloy.data.splits import SplitsConfig, draw_splits, validation_split
from modalloy.errors import ConfigError, DataError
from modalloy.features.sources import Captions, Images

SIZES = {"train": 20, "val": 3, "test": 4}


def collection(sizes=SIZES, families=(), without_captions=()):
    """Items named after their split; each of `families` is a range of rows of train."""
    names = [(f"{split}-{n}", split) for split, size in sizes.items() for n in range(size)]
    family = {row: f"family {number}" for number, rows in enumerate(families) for row in rows}
    return Manifest(
        Path("/pictures"),
        tuple(
            Item(id, f"{id}.png", "0" * 64, split, () if row in without_captions else ("A.", "B."), family.get(row))
            for row, (id, split) in enumerate(names)
        ),
    )


def ids(manifest, split):
    return {item.id for item in manifest if item.split == split}


def images(manifest):
    return {split: count["images"] for split, count in manifest.counts().items()}


def test_without_options_nothing_changes():
    assert draw_splits(collection(), SplitsConfig()) == collection()


def test_the_drawn_are_those_with_the_least_hash():
    drawn = draw_splits(collection(), SplitsConfig(seed=3, tune=5, inputs=0.4))

    def least(names, split, count):
        hashes = {name: hashlib.sha256(json.dumps([3, split, "id", name]).encode()).hexdigest() for name in names}
        return set(sorted(names, key=hashes.__getitem__)[:count])

    train = ids(collection(), "train")
    tune = least(train, "tune", 5)
    assert ids(drawn, "tune") == tune
    assert ids(drawn, "inputs") == least(train - tune, "inputs", 6)
    assert images(drawn) == {"train": 9, "val": 3, "tune": 5, "test": 4, "inputs": 6}


@given(st.randoms(use_true_random=False), st.integers(0, 3), st.integers(1, 9), st.sampled_from([0.0, 0.3, 0.5]))
def test_neither_the_order_nor_the_captions_decide_and_families_stay_together(rng: random.Random, seed, tune, inputs):
    manifest = collection(families=(range(0, 3), range(5, 7), range(8, 13)))
    config = SplitsConfig(seed, tune, inputs)
    shuffled = list(manifest)
    rng.shuffle(shuffled)
    shuffled = [replace(item, captions=item.captions[:1]) for item in shuffled]
    drawn, again = draw_splits(manifest, config), draw_splits(Manifest(manifest.root, tuple(shuffled)), config)
    assert {item.id: item.split for item in drawn} == {item.id: item.split for item in again}
    families = {}
    for item in drawn:
        families.setdefault(item.family or item.id, set()).add(item.split)
    assert all(len(splits) == 1 for splits in families.values())
    assert len(ids(drawn, "tune")) <= tune


def test_a_seed_decides():
    first, second = (ids(draw_splits(collection(), SplitsConfig(seed, tune=8)), "tune") for seed in (0, 1))
    assert first != second


def test_what_families_leave_short_is_said(caplog):
    pairs = collection(families=[range(row, row + 2) for row in range(0, 20, 2)])
    with caplog.at_level(logging.WARNING, "modalloy"):
        drawn = draw_splits(pairs, SplitsConfig(tune=5))
    assert len(ids(drawn, "tune")) == 4
    assert "tune has 4 images instead of 5, since families stay together" in caplog.text


def test_images_without_captions_are_no_use_in_a_draw():
    drawn = draw_splits(collection(without_captions=range(0, 10)), SplitsConfig(tune=9))
    assert len(ids(drawn, "tune")) == 9 and not ids(drawn, "tune") & {f"train-{n}" for n in range(10)}


def test_val_stands_in_for_a_sealed_test_split(caplog):
    with caplog.at_level(logging.WARNING, "modalloy"):
        drawn = draw_splits(collection(), SplitsConfig(tune=5, test="val"))
    assert "the collection's own test split (4 images) is unused" in caplog.text
    assert ids(drawn, "test") == ids(collection(), "val") and ids(drawn, "unused") == ids(collection(), "test")
    assert images(drawn) == {"train": 15, "tune": 5, "test": 3, "unused": 4}


def test_val_stands_in_for_a_missing_test_split(caplog):
    drawn = draw_splits(collection({"train": 9, "val": 2, "tune": 3}), SplitsConfig(test="val"))
    assert images(drawn) == {"train": 9, "tune": 3, "test": 2} and not caplog.records


def test_stored_features_stay_valid():
    drawn = draw_splits(collection(), SplitsConfig(tune=5, inputs=0.5, test="val"))
    for source in (Images, Captions):
        assert source(drawn).digest() == source(collection()).digest()
    assert drawn.fingerprint == collection().fingerprint


@pytest.mark.parametrize(
    ("sizes", "options", "said"),
    [
        (SIZES, {"tune": 20}, "tune takes 20 images of the 20 captioned ones in train, which must leave some of both"),
        (SIZES, {"tune": 500}, "tune takes 500 images of the 20 captioned ones"),
        (SIZES, {"inputs": 0.01}, "inputs takes 0 images of the 20"),
        (SIZES, {"inputs": 0.99}, "inputs takes 20 images of the 20"),
        ({"val": 3}, {"tune": 1}, "tune takes 1 images of the 0"),
        ({"train": 9, "tune": 3}, {"tune": 1}, "a split 'tune' of its own (3 images)"),
        ({"train": 9, "inputs": 3}, {"inputs": 0.5}, "a split 'inputs' of its own (3 images)"),
        (SIZES, {"test": "val"}, "leaves nothing to choose a fusion by"),
        ({"train": 9, "test": 3}, {"tune": 2, "test": "val"}, "has no split 'val'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(sizes, options, said):
    with pytest.raises(DataError, match=re.escape(said)):
        draw_splits(collection(sizes), SplitsConfig(**options))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"tune": -1}, "splits.tune"), ({"inputs": 1.0}, "splits.inputs"), ({"inputs": float("nan")}, "splits.inputs")],
)
def test_impossible_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        SplitsConfig(**options)


def test_an_unknown_test_split_is_refused():
    config = SplitsConfig()
    object.__setattr__(config, "test", "train")  # past the type checks that only the tests have
    with pytest.raises(ConfigError, match=r"splits\.test must be 'test' or 'val', got 'train'"):
        config.__post_init__()


def test_a_choice_is_made_on_tune_where_there_is_one():
    assert validation_split(["train", "val", "test"]) == "val"
    assert validation_split(["train", "val", "tune"]) == "tune"
