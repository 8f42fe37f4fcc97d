import shutil
from dataclasses import replace

import pytest

from modalloy import Alloy, Collection, evaluate
from modalloy.data import Manifest
from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import metrics, rank_in_folds
from modalloy.files import read_json
from modalloy.report.table import systems_table


@pytest.fixture(scope="module")
def collection(finished_run, tiny_manifest, tmp_path_factory):
    # The alloy's features are added to a copy.
    features = shutil.copytree(finished_run / "features", tmp_path_factory.mktemp("evaluate") / "features")
    return Collection(tiny_manifest, features)


def test_inputs_score_as_in_the_run(finished_run, encoders, collection):
    result = evaluate(encoders, collection)
    report = read_json(finished_run / "report.json")
    assert result["test"] == report["test"]
    assert list(result["systems"]) == [encoder.name for encoder in encoders]
    for name, system in result["systems"].items():
        assert system == report["systems"][name]
    (difference,) = result["differences"]
    assert (difference["a"], difference["b"]) == tuple(result["systems"])


def test_an_alloy_is_compared_with_its_inputs(finished_run, encoders, collection):
    alloy = Alloy.from_pretrained(finished_run)
    result = evaluate([alloy, *encoders], collection, split="val")
    assert set(result) >= {"val", "systems", "differences"} and "test" not in result
    assert [each["b"] for each in result["differences"]] == [encoder.name for encoder in encoders]


def test_the_split_of_the_inputs_can_be_evaluated_though_a_comparison_has_inputs_too(encoders, collection):
    items = tuple(replace(item, split="inputs") if item.split == "val" else item for item in collection.manifest)
    result = evaluate(encoders, Collection(Manifest(collection.manifest.root, items), collection.features), "inputs")
    known = evaluate(encoders, collection, "val")
    assert result["inputs"] == known["val"] and result["systems"] == known["systems"]
    assert "Split inputs: " in str(systems_table(result).title)


def test_encoders_of_one_name_are_told_apart_by_their_specs(encoders, collection, monkeypatch):
    for encoder in encoders:
        monkeypatch.setattr(encoder, "name", "same")
    assert list(evaluate(encoders, collection)["systems"]) == [encoder.spec for encoder in encoders]


def test_the_same_encoder_twice_is_refused(encoders, collection):
    with pytest.raises(ConfigError, match="is given 2 times"):
        evaluate([encoders[0], encoders[0]], collection)


def test_a_misspelt_split_is_found_before_the_work(encoders, tiny_manifest, tmp_path):
    with pytest.raises(DataError, match="there is no split 'tset'"):
        evaluate(encoders, Collection(tiny_manifest, tmp_path), split="tset")
    assert not list(tmp_path.iterdir())


def test_an_empty_split_is_refused(encoders, tiny_manifest, tmp_path):
    with pytest.raises(DataError, match="no usable captioned image in val"):
        evaluate(encoders, Collection(tiny_manifest.split("test"), tmp_path), split="val")


def test_queries_may_be_ranked_within_folds(encoders, collection):
    # 9 pictures of the validation part.
    whole, folds = (evaluate(encoders, collection, "val", size) for size in (None, 3))
    assert folds["val"] == {**whole["val"], "fold_size": 3}
    assert "in folds of 3 images" in str(systems_table(folds).title)
    items = collection.paired(encoders).split("val")
    (scores, *_), (name, *_) = items.input_scores(), folds["systems"]
    expected = metrics(rank_in_folds(scores, items.caption_image, 3))
    assert folds["systems"][name]["rsum"] == pytest.approx(expected.rsum)
    # There are fewer to be mistaken for.
    assert folds["systems"][name]["rsum"] >= whole["systems"][name]["rsum"]


def test_items_that_make_no_whole_folds_are_refused(encoders, collection):
    with pytest.raises(DataError, match="9 images don't make folds of 4"):
        evaluate(encoders, collection, "val", 4)
