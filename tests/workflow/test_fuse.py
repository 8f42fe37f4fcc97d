import csv

import pytest
import torch
import yaml

from modalloy import Alloy, Collection, fuse, load_encoder
from modalloy.data import Manifest
from modalloy.errors import ConfigError, DataError
from modalloy.fusion import ScoreFusion, TowerConfig, count_parameters
from modalloy.training.fusion_training import FusionTraining
from modalloy.training.tracking import TrackingConfig
from modalloy.workflow.fuse import METHODS, SHORT_NAMES, SYSTEMS, UNTRAINED, FusionConfig, FusionFit, validation_split

TRAINING = FusionTraining(epochs=1, batch_size=8, queue_size=32)
TINY = FusionConfig(TowerConfig(token_dim=8, heads=2), TRAINING, TRAINING)


@pytest.fixture(scope="module")
def encoders(finished_run):
    return [load_encoder(f"hacan:{finished_run / 'inputs' / number}") for number in "12"]


@pytest.fixture(scope="module")
def collection(finished_run, tiny_manifest):
    return Collection(tiny_manifest, finished_run / "features")


@pytest.fixture(scope="module")
def fits(encoders, collection, tmp_path_factory):
    return FusionFit(encoders, collection, TINY, tmp_path_factory.mktemp("fits"))


def test_the_mean_of_cosines_is_that(fits):
    first, second = fits.validation.input_scores()
    fused = fits.validation.scores(fits.fit("mean of cosines"))
    every = slice(None)
    mean = (first.score(every, every) + second.score(every, every)) / 2
    assert torch.allclose(fused.score(every, every), mean, atol=1e-6)


def test_the_tuned_weights_are_at_least_as_good_on_validation_as_any_input(fits):
    tuned = fits.fit("validation-tuned weighted cosine")
    assert isinstance(tuned, ScoreFusion)
    alone = [
        fits.validation.rsum(ScoreFusion(weights, fits.shapes)) for weights in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0])
    ]
    assert fits.validation.rsum(tuned) >= max(alone)


def test_b2_is_as_large_as_asked(fits):
    narrow, wide, hada = (fits.fit(method) for method in ("B2 (concat-linear)", METHODS[3], "HADA stage 2"))
    sizes = [count_parameters(fuser.towers) for fuser in (narrow, wide, hada)]
    assert sizes[0] < sizes[1] and sizes[1] == pytest.approx(sizes[2], rel=0.02)


def test_the_stages_differ_by_the_weighted_inputs(fits):
    first, second = fits.fit("HADA stage 1"), fits.fit("HADA stage 2")
    assert first.config.weighted_inputs == ()
    rsums = [fits.validation.rsum(ScoreFusion(weights, fits.shapes)) for weights in ([1.0, 0.0], [0.0, 1.0])]
    assert second.config.weighted_inputs == (rsums.index(max(rsums)),)
    # The second starts from the first: no training may leave it worse on validation than its own start.
    assert second.dim == first.dim + fits.shapes[second.config.weighted_inputs[0]].dim


def test_all_inputs_may_be_weighted(fits, encoders, collection, tmp_path):
    config = FusionConfig(TINY.towers, TRAINING, TRAINING, weighted_inputs="all")
    # The first stage doesn't depend on it, so it is taken over.
    both = FusionFit(encoders, collection, config, fits.folder).fit("HADA stage 2")
    assert both.config.weighted_inputs == (0, 1)
    assert float(both.similarity().detach().sum()) == pytest.approx(1)


def test_fitting_leaves_the_global_random_numbers_alone(fits, encoders, collection, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    FusionFit(encoders, collection, TINY, tmp_path).fit("HADA stage 1")
    assert torch.equal(torch.rand(2), expected)


def test_a_seed_decides_the_result(fits):
    query = fits.validation
    scores = [query.scores(fits.fit("B2 (concat-linear)", seed)).score(slice(None), slice(None)) for seed in (0, 1)]
    assert not torch.equal(*scores)
    assert fits.fit("B2 (concat-linear)", 1) is fits.fit("B2 (concat-linear)", 1)


def test_an_alloy_is_an_encoder_again(encoders, collection, tmp_path):
    """Alloys nest: what is fused of an alloy and an encoder embeds, is saved and loaded."""
    inner = fuse(encoders, collection, tmp_path / "inner", method="mean of cosines", config=TINY)
    few = Manifest(
        collection.manifest.root,
        tuple(item for split in ("train", "tune") for item in collection.manifest.split(split)[6:14]),
    )
    outer = fuse([inner, encoders[0]], Collection(few, tmp_path / "features"), tmp_path / "outer", config=TINY)
    loaded = Alloy.from_pretrained(tmp_path / "outer")
    assert [encoder.spec for encoder in loaded.encoders] == [inner.spec, encoders[0].spec]
    texts = ["a red telephone", "a tree"]
    vectors = loaded.encode_texts(texts).embedding
    assert torch.equal(vectors, outer.encode_texts(texts).embedding)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)


def test_a_fused_alloy_scores_as_its_fuser(fits, encoders, collection, tmp_path):
    alloy = fuse(encoders, collection, tmp_path, method="validation-tuned weighted cosine", config=TINY)
    assert alloy.name == "validation-tuned weighted cosine" and alloy.spec == f"alloy:{tmp_path}"
    expected = fits.fit("validation-tuned weighted cosine").embed_rows(fits.features.text, torch.arange(3))
    texts = collection.manifest.captions[:3]
    assert torch.allclose(alloy.encode_texts(texts).embedding, expected, atol=1e-5)


def test_a_fusion_is_tracked(encoders, collection, tmp_path):
    tracking = TrackingConfig("csv", folder=str(tmp_path / "tracked"), experiment="trials")
    fuse(encoders, collection, tmp_path / "alloy", "B2 (concat-linear)", TINY, seed=3, tracking=tracking)
    (run,) = (tmp_path / "tracked/trials").iterdir()
    parameters = yaml.safe_load((run / "hparams.yaml").read_text())
    assert (parameters["method"], parameters["seed"]) == ("B2 (concat-linear)", 3)
    assert parameters["fusion/first_stage/queue_size"] == 32
    assert parameters["fingerprints/collection"] == collection.manifest.fingerprint
    for stage in (1, 2):
        with (run / f"concat-linear-stage-{stage}/seed-3/metrics.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert row["step"] == "1" and float(row["contrastive"]) > 0


def test_one_encoder_is_not_enough(encoders, collection, tmp_path):
    with pytest.raises(ConfigError, match="at least 2 encoders, got 1"):
        fuse(encoders[:1], collection, tmp_path)


def test_more_encoders_than_a_method_takes_are_refused_before_anything_is_extracted(encoders, collection, tmp_path):
    with pytest.raises(ConfigError, match="'hada-original' fuses two encoders, got 3"):
        fuse([*encoders, encoders[0]], collection, tmp_path, config=FusionConfig(TowerConfig("hada-original")))


def test_a_collection_without_training_items_is_refused(encoders, finished_run, tiny_manifest, tmp_path):
    only_test = tiny_manifest.split("test")
    with pytest.raises(DataError, match="no usable captioned image in train"):
        fuse(encoders, Collection(only_test, tmp_path / "features"), tmp_path / "alloy")


def test_names():
    assert set(SHORT_NAMES.values()) == set(METHODS)
    assert set(UNTRAINED) < set(METHODS) < set(SYSTEMS)
    assert validation_split(["train", "val", "test"]) == "val"
    assert validation_split(["train", "val", "tune"]) == "tune"
