import csv
from dataclasses import replace

import pytest
import torch
import yaml

from modalloy import Alloy, Collection, fuse
from modalloy.data import Manifest
from modalloy.errors import ConfigError, DataError
from modalloy.files import read_json
from modalloy.fusion import Rotated, ScoreFusion, TowerConfig, TowerFuser, choose_weights, count_parameters
from modalloy.training.fusion_module import VALIDATION_RSUM
from modalloy.training.fusion_training import FusionTraining
from modalloy.training.tracking import TrackingConfig
from modalloy.workflow.fuse import FusionFit
from modalloy.workflow.fusion_config import METHODS, SHORT_NAMES, SYSTEMS, UNTRAINED, FusionConfig

TRAINING = FusionTraining(epochs=1, batch_size=8, queue_size=32)
TINY = FusionConfig(TowerConfig(token_dim=8, heads=2), TRAINING, TRAINING)


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


def test_the_curves_of_variants_have_names_of_their_own(fits, monkeypatch):
    named = []
    monkeypatch.setattr("modalloy.workflow.fuse.fit_fuser", lambda *arguments, teacher: named.append(arguments[-1]))
    for each in (fits, fits.variant("auto", TINY, fits.validation).variant("random-start", TINY, fits.validation)):
        each.expert("hada", 3)
    assert named == ["hada-stage-1/seed-3", "auto/random-start/hada-stage-1/seed-3"]


def test_b2_is_as_large_as_asked(fits):
    narrow, wide, hada = (fits.fit(method) for method in ("B2 (concat-linear)", METHODS[3], "HADA stage 2"))
    sizes = [count_parameters(fuser.towers) for fuser in (narrow, wide, hada)]
    assert sizes[0] < sizes[1] and sizes[1] == pytest.approx(sizes[2], rel=0.02)


def test_b2_is_as_large_as_a_hada_that_reads_summaries(encoders, collection, tmp_path):
    config = replace(TINY, towers=replace(TINY.towers, read_summaries=True))
    fits = FusionFit(encoders, collection, config, tmp_path)
    wide, hada = (fits.fit(method) for method in (METHODS[3], "HADA stage 1"))
    assert count_parameters(wide.towers) == pytest.approx(count_parameters(hada.towers), rel=0.02)


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


def test_inputs_may_be_weighted_by_name(fits, encoders, collection):
    named = replace(TINY, weighted_inputs=("second",))
    fit = FusionFit(encoders, collection, named, fits.folder, names=["first", "second"])
    assert fit.fit("HADA stage 2").config.weighted_inputs == (1,)
    by_spec = replace(TINY, weighted_inputs=(encoders[1].spec, 0))
    assert FusionFit(encoders, collection, by_spec, fits.folder).fit("HADA stage 2").config.weighted_inputs == (0, 1)
    with pytest.raises(ConfigError, match="there is no input 'third'; name some of hacan"):
        FusionFit(encoders, collection, replace(TINY, weighted_inputs=("third",)), fits.folder)


@pytest.mark.parametrize("method", ["HADA stage 1", "HADA stage 2"])
def test_tuned_weights_replace_the_learned_ones_after_either_stage(fits, method):
    config = replace(TINY, weights="tuned", weighted_inputs="all")
    tuned = fits.variant(".", config, fits.validation).fit(method)
    assert tuned.config.weighted_inputs == (0, 1)
    validation = fits.validation
    parts = [validation.scores(tuned.second_stage(())), *validation.input_scores()]
    expected = choose_weights(parts, validation.caption_image)
    assert tuned.similarity().tolist() == pytest.approx(expected)
    learned = fits.variant(".", replace(config, weights="learned"), fits.validation).fit(method)
    assert validation.rsum(tuned) >= validation.rsum(learned)
    for name, weight in learned.towers.state_dict().items():
        assert torch.equal(weight, tuned.towers.state_dict()[name])
    contrast = fits.variant(".", replace(config, criterion="contrast"), fits.validation).fit(method)
    assert contrast.similarity().tolist() == pytest.approx(
        choose_weights(parts, validation.caption_image, "contrast"), abs=1e-6
    )


def test_an_expert_is_the_first_stage_alone(fits):
    assert fits.expert("hada").dim == fits.fit("HADA stage 1").dim == fits.expert("concat-linear").dim
    assert fits.expert("hada").config.weighted_inputs == ()
    assert fits.expert("concat-linear").config.method == "concat-linear"


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


def test_an_alloys_vectors_may_be_cut(fits, encoders, collection, tmp_path):
    tuned = "validation-tuned weighted cosine"
    fuse(encoders, collection, tmp_path, method=tuned, config=replace(TINY, vector_dim=5))
    loaded = Alloy.from_pretrained(tmp_path)
    expected = Rotated.fit(fits.fit(tuned), fits.train, 5).embed_rows(fits.features.text, torch.arange(3))
    found = loaded.encode_texts(collection.manifest.captions[:3]).embedding
    assert found.shape == (3, 5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "dim", "message"),
    [
        ("auto", 5, "vector_dim can't be had with method 'auto'"),
        ("HADA stage 1", 65, "fusion.vector_dim=65 is longer than the alloy's vectors, which have at most 64 numbers"),
        ("mean of cosines", 64, "can be cut to 1..32, got 64"),
    ],
)
def test_a_length_that_cannot_be_had_is_refused_before_anything_is_fitted(
    encoders, collection, tmp_path, method, dim, message
):
    with pytest.raises(ConfigError, match=message):
        fuse(encoders, collection, tmp_path, method=method, config=replace(TINY, vector_dim=dim))
    assert not list(tmp_path.rglob("fit.json"))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("alloy", "method 'alloy' mixes the experts of fusion.experts, but none is in the alloy"),
        ("hda", "unknown method 'hda'; choose one of mean of cosines, .*hada, auto"),
    ],
)
def test_a_method_that_cannot_be_had_is_refused(encoders, collection, tmp_path, method, message):
    with pytest.raises(ConfigError, match=message):
        fuse(encoders, collection, tmp_path, method=method, config=TINY)


def test_a_fusion_starts_from_an_alloy_whose_vectors_were_cut(fits, encoders, collection, tmp_path):
    fuse(encoders, collection, tmp_path / "cut", method="HADA stage 1", config=replace(TINY, vector_dim=5))
    config = replace(TINY, pretrained=str(tmp_path / "cut"), first_stage=replace(TINY.first_stage, epochs=1))
    started = FusionFit(encoders, collection, config, tmp_path / "fits").fit("HADA stage 1")
    assert started.dim == fits.fit("HADA stage 1").dim


@pytest.fixture(scope="module")
def elsewhere(encoders, collection, tmp_path_factory):
    """An alloy of the same encoders, fitted on other pairs; that it has learned shows in its similarity too."""
    folder = tmp_path_factory.mktemp("elsewhere")
    items = (
        replace(item, split="unused") if item.split == "train" and row % 2 else item
        for row, item in enumerate(collection.manifest)
    )
    half = Collection(Manifest(collection.manifest.root, tuple(items)), collection.features)
    training = replace(TRAINING, learning_rate=1e-2, seed=0)
    config = FusionConfig(TINY.towers, training, training, weighted_inputs="all")
    fuse(encoders, half, folder / "alloy", config=config, seed=5)
    return folder / "alloy"


def test_a_fusion_starts_from_a_pretrained_one(fits, encoders, collection, elsewhere, tmp_path):
    config = FusionConfig(TINY.towers, TRAINING, TRAINING, weighted_inputs="all", pretrained=f"alloy:{elsewhere}")
    pretrained = Alloy.from_pretrained(elsewhere).fuser
    # A training from the usual start in the same folder isn't taken for this one.
    plain = FusionFit(encoders, collection, replace(config, pretrained=None), tmp_path / "fits").fit("HADA stage 2")
    alloy = fuse(encoders, collection, tmp_path, config=config)
    histories = [read_json(tmp_path / f"fits/hada-stage-{stage}/seed-0/fit.json")["history"] for stage in (1, 2)]
    towers = TowerFuser(replace(pretrained.config, weighted_inputs=()), fits.shapes)
    towers.towers.load_state_dict(pretrained.towers.state_dict())
    assert histories[0][0] == {"epoch": 0, VALIDATION_RSUM: fits.validation.rsum(towers.eval())}
    assert len(histories[0]) == len(histories[1]) == 2
    assert not torch.equal(*(each.towers["text"].output.linear.weight for each in (plain, alloy.fuser)))
    first = FusionFit(encoders, collection, config, tmp_path / "fits").fit("HADA stage 1")
    second = first.second_stage((0, 1))
    second.similarity.load_state_dict(pretrained.similarity.state_dict())
    assert histories[1][0][VALIDATION_RSUM] == fits.validation.rsum(second.eval())
    assert torch.equal(
        Alloy.from_pretrained(tmp_path).encode_texts(["a tree"]).embedding, alloy.encode_texts(["a tree"]).embedding
    )


def test_the_baselines_start_as_ever(fits, encoders, collection, elsewhere, tmp_path):
    config = replace(TINY, pretrained=str(elsewhere))
    name = "B2 (concat-linear)"
    baseline = FusionFit(encoders, collection, config, fits.folder).fit(name)
    assert torch.equal(
        baseline.towers["image"].output.linear.weight, fits.fit(name).towers["image"].output.linear.weight
    )
    with pytest.raises(ConfigError, match=r"starts HADA, but the method is 'B2 \(concat-linear\)'"):
        fuse(encoders, collection, tmp_path, method=name, config=config)
    assert not list(tmp_path.iterdir())


def test_a_pretrained_one_of_other_layers_is_refused_before_anything_is_extracted(
    encoders, tiny_manifest, elsewhere, tmp_path
):
    wide = FusionConfig(replace(TINY.towers, token_dim=16), TRAINING, TRAINING, pretrained=str(elsewhere))
    with pytest.raises(ConfigError, match=r"fusion.towers.token_dim is 16, but 8 in the pretrained"):
        fuse(encoders, Collection(tiny_manifest, tmp_path / "features"), tmp_path / "alloy", config=wide)
    assert not list(tmp_path.iterdir())


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
