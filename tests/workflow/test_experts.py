"""Experts, their mixtures with the inputs, and the alloy, on the finished tiny run's encoders."""

from dataclasses import replace

import pytest
import torch

from modalloy import fuse
from modalloy.errors import ConfigError
from modalloy.fusion import Mixture, TowerConfig, TowerFuser, choose_weights
from modalloy.training.fusion import fit_fuser
from modalloy.training.fusion_training import FusionTraining
from modalloy.workflow.experts import ALLOY, ExpertConfig, expert_systems
from modalloy.workflow.fuse import FusionFit
from modalloy.workflow.fusion_config import METHODS, TUNED, UNTRAINED, FusionConfig

TRAINING = FusionTraining(epochs=1, batch_size=8, queue_size=0)
LINEAR = ExpertConfig("linear", TowerConfig("concat-linear", read_summaries=True), TRAINING)
GRAPH = ExpertConfig("graph", TowerConfig(token_dim=8, heads=2), replace(TRAINING, averaged=True))
BASELINE = ExpertConfig("B2", TowerConfig("concat-linear"), TRAINING, in_alloy=False)
SHORT = ExpertConfig(
    "short",
    TowerConfig("concat-linear", output_dim=5, start="random"),
    replace(TRAINING, prefixes=(2,), teacher_temperature=0.1),
    in_alloy=False,
    teachers=("linear", "graph"),
)
CONFIG = FusionConfig(methods=UNTRAINED, experts=(LINEAR, GRAPH, BASELINE, SHORT))


def with_experts(*experts: ExpertConfig) -> FusionConfig:
    return replace(CONFIG, experts=experts)


@pytest.fixture(scope="module")
def fits(encoders, collection, tmp_path_factory):
    return FusionFit(encoders, collection, CONFIG, tmp_path_factory.mktemp("fits"))


def test_a_run_fits_the_chosen_methods_and_every_expert_with_the_inputs(fits):
    systems = ("linear with the inputs", "graph with the inputs", "B2 with the inputs", "short with the inputs", ALLOY)
    assert expert_systems(CONFIG.experts) == systems
    assert fits.methods == (*UNTRAINED, *systems)
    assert CONFIG.delivered == ALLOY
    assert replace(CONFIG, experts=(BASELINE,), methods=METHODS).delivered == "HADA stage 2"


def test_an_expert_is_trained_by_its_own_settings_in_a_folder_of_its_own(fits):
    expert = fits.fit_expert(GRAPH, seed=1)
    assert expert.config == GRAPH.towers and not expert.training
    assert (fits.folder / "expert-graph" / "seed-1" / "fit.json").exists()
    again = fits.fit_expert(GRAPH, seed=1)
    other = fits.fit_expert(GRAPH, seed=2)
    state = expert.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert not all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(("method", "experts"), [("linear with the inputs", [LINEAR]), (ALLOY, [LINEAR, GRAPH])])
def test_a_mixture_weighs_its_experts_and_all_inputs_by_validation(fits, method, experts):
    mixture = fits.fit(method)
    assert isinstance(mixture, Mixture)
    scores = [*(fits.validation.scores(fits.fit_expert(each)) for each in experts), *fits.validation.input_scores()]
    weights = choose_weights(scores, fits.validation.caption_image)
    every = slice(None)
    expected = sum(weight * part.score(every, every) for weight, part in zip(weights, scores, strict=True))
    found = fits.validation.scores(mixture).score(every, every)
    torch.testing.assert_close(found, expected / sum(weights), rtol=1e-4, atol=1e-5)


def test_an_expert_is_taught_by_the_mixture_of_its_teachers_with_the_inputs(fits, encoders, collection, monkeypatch):
    given = []

    def watched(*arguments, teacher):
        given.append(teacher)
        return fit_fuser(*arguments, teacher=teacher)

    monkeypatch.setattr("modalloy.workflow.fuse.fit_fuser", watched)
    # The alloy is the mixture of the same experts, which are fitted for it.
    expected = fits.fit(ALLOY, 2).state_dict()
    assert {*given} <= {None}
    assert fits.fit_expert(SHORT, 2).dim == 5
    (teacher,) = (each.fuser for each in given if each is not None)
    assert isinstance(teacher, Mixture) and teacher.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in teacher.state_dict().items())
    # The pupil itself can be delivered, and may teach.
    assert fits.fit("short", 2) is fits.fit_expert(SHORT, 2)
    again = replace(SHORT, name="again", teachers=("short",))
    other = FusionFit(encoders, collection, with_experts(LINEAR, GRAPH, SHORT, again), fits.folder)
    assert isinstance(other.fit("again", 2), TowerFuser) and given[-1].fuser.fusers()[0].dim == 5


def test_a_taught_expert_is_reused_though_the_sought_weights_differ_in_their_last_bits(
    fits, encoders, collection, monkeypatch
):
    fits.fit_expert(SHORT)
    record = fits.folder / SHORT.folder / "seed-0" / "fit.json"
    before = record.stat().st_mtime_ns
    sought = FusionFit.sought_weights
    monkeypatch.setattr(
        FusionFit, "sought_weights", lambda self, members: tuple(each + 1e-9 for each in sought(self, members))
    )
    other = FusionFit(encoders, collection, CONFIG, fits.folder)
    other.fit_expert(SHORT)
    assert record.stat().st_mtime_ns == before
    # By another criterion the weights are others.
    FusionFit(encoders, collection, replace(CONFIG, criterion="contrast"), fits.folder).fit_expert(SHORT)
    assert record.stat().st_mtime_ns > before


def test_an_unknown_teacher_is_refused(fits):
    with pytest.raises(ConfigError, match="teacher 'nobody' of the expert 'short' isn't among"):
        fits.fit_expert(replace(SHORT, teachers=("nobody",)))


def test_a_prefix_that_the_fused_vector_lacks_is_refused_before_anything_is_fitted(encoders, collection, tmp_path):
    for prefix, output_dim, width in ((5, 5, 5), (32, None, 32)):
        towers = TowerConfig("concat-linear", output_dim=output_dim, start="random")
        expert = ExpertConfig("cut", towers, replace(TRAINING, prefixes=(4, prefix)))
        with pytest.raises(ConfigError, match=f"shorter than the fused vector, which is {width} wide, got {prefix}"):
            FusionFit(encoders, collection, with_experts(expert), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_tuned_cosine_is_tuned_by_rsum_whatever_the_criterion(encoders, collection, fits):
    other = FusionFit(encoders, collection, replace(CONFIG, criterion="contrast"), fits.folder)
    assert torch.equal(other.fit(TUNED).weights, fits.fit(TUNED).weights)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExpertConfig(" "), "an expert needs a name of letters"),
        (lambda: ExpertConfig("a/b"), "an expert needs a name of letters.*got 'a/b'"),
        (lambda: ExpertConfig("a", TowerConfig(weighted_inputs=(0,))), "can't have towers.weighted_inputs"),
        (lambda: ExpertConfig("a", training=FusionTraining(seed=1)), "can't have .* training.seed"),
        (lambda: ExpertConfig("a", TowerConfig("concat-linear", layers=2)), "no graph that towers.layers could change"),
        (lambda: replace(CONFIG, experts=(LINEAR, replace(GRAPH, name="Linear"))), "two experts are called 'linear'"),
        (lambda: with_experts(replace(LINEAR, teachers=("graph",)), GRAPH), r"before it \(there is none\), got graph"),
        (lambda: with_experts(LINEAR, replace(GRAPH, teachers=("graph",))), r"before it \(linear\), got graph"),
        (lambda: with_experts(LINEAR, replace(GRAPH, teachers=("linear", "linear"))), "got linear, linear"),
        (
            lambda: replace(SHORT, training=replace(TRAINING, distillation=0.0)),
            "a teacher teaches nothing where the expert 'short': training.dist",
        ),
        (lambda: FusionConfig(vector_dim=0), "fusion.vector_dim must be at least 1, got 0"),
        (
            lambda: FusionConfig(second_stage=replace(TRAINING, teacher_temperature=0.1)),
            "no teacher for fusion.second_stage.teacher_temperature=0.1",
        ),
        (lambda: replace(SHORT, teachers=()), "no teacher for the expert 'short': training.teacher_temperature=0.1"),
        (lambda: replace(CONFIG, methods=METHODS[1:]), "methods must hold 'mean of cosines'"),
        (lambda: replace(CONFIG, methods=UNTRAINED, experts=()), "methods must hold 'HADA stage 2'"),
        (lambda: replace(CONFIG, methods=(*METHODS, METHODS[0])), "methods must be different ones of"),
    ],
)
def test_experts_and_methods_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_an_unknown_method_is_refused_with_the_known_ones(fits):
    with pytest.raises(ConfigError, match=r"unknown method .alloys.; choose one of mean of cosines.*alloy"):
        fits.fit("alloys")


def test_fuse_takes_the_experts_by_the_method_alloy_and_refuses_what_it_would_ignore(encoders, collection, tmp_path):
    config = replace(CONFIG, methods=METHODS, experts=(LINEAR,))
    alloy = fuse(encoders, collection, tmp_path / "alloy", ALLOY, config)
    assert isinstance(alloy.fuser, Mixture)
    with pytest.raises(
        ConfigError, match=r"'HADA stage 1' has no use for fusion.experts; say 'alloy', 'auto' or an expert's name"
    ):
        fuse(encoders, collection, tmp_path / "other", "HADA stage 1", config)
    with pytest.raises(ConfigError, match=r"fusion.methods says what a run compares"):
        fuse(encoders, collection, tmp_path / "other", ALLOY, CONFIG)
    assert not (tmp_path / "other").exists()
