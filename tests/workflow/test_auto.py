"""The decision, on rungs whose worth is known; and the whole ladder with its trainings, which is slow."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize
from toy_encoders import Toy, toy_pairs

from modalloy import Alloy, fuse
from modalloy.evaluation import bootstrap_difference, metrics, rank_queries
from modalloy.features import FeatureStore
from modalloy.fusion import Fuser, Mixture, ScoreFusion, TowerConfig
from modalloy.fusion.subset import halves
from modalloy.training.fusion_training import FusionTraining
from modalloy.workflow import auto
from modalloy.workflow import fuse as workflow_fuse
from modalloy.workflow.auto import MIXTURE, choose, settings_of
from modalloy.workflow.choice import SMALLEST_HALF
from modalloy.workflow.fuse import FusionFit
from modalloy.workflow.fusion_config import FusionConfig

TUNED = "validation-tuned weighted cosine"
TRAINING = FusionTraining(
    epochs=3, batch_size=50, learning_rate=3e-2, momentum=0.9, queue_size=64, similarity_learning_rate=0.05
)
CONFIG = FusionConfig(
    TowerConfig(token_dim=8, heads=2, dropout=0.1),
    TRAINING,
    replace(TRAINING, epochs=1, learning_rate=1e-3),
    weighted_inputs="all",
)


class Telling(Fuser):
    """Reads the latent vector off the first encoder's token: as good as a training can be."""

    def __init__(self, encoder: Toy, shapes) -> None:
        super().__init__()
        self.shapes, self.encoder = tuple(shapes), encoder
        self.register_buffer("nothing", torch.zeros(1))

    tokens_read, dim = None, 6

    def embed(self, modality, inputs):
        return normalize(inputs[0].tokens[:, 0] @ torch.linalg.pinv(self.encoder.spread(modality)), dim=-1)


def trained_rungs(monkeypatch, make) -> None:
    """The trained systems are what `make` gives for the fits, instead of trainings."""
    monkeypatch.setattr(
        auto,
        "_trained_systems",
        lambda fits, seed: [auto._System(name, fuser, trained=True) for name, fuser in make(fits).items()],
    )


@pytest.fixture(scope="module")
def encoders():
    return [Toy(1, noise=1.2), Toy(2, noise=1.2)]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return toy_pairs(tmp_path_factory.mktemp("auto"), {"train": 40, "val": 64, "test": 12})


@pytest.fixture
def fits(encoders, collection, tmp_path):
    return FusionFit(encoders, collection, CONFIG, tmp_path, names=["a", "b"])


def test_a_trained_rung_that_is_surely_better_is_returned(fits, encoders, monkeypatch):
    worse = ScoreFusion([1.0, 0.0], fits.shapes)
    trained_rungs(monkeypatch, lambda fits: {"worse": worse, "expert": Telling(encoders[0], fits.shapes)})
    chosen = choose(fits)
    choice = chosen.choice
    assert (choice.chosen, choice.candidate, choice.simple) == ("expert", "expert", TUNED)
    assert isinstance(chosen.fuser, Telling) and chosen.encoders == encoders
    assert [rung.name for rung in choice.rungs] == ["input a", "input b", "mean of cosines", TUNED, "worse", "expert"]
    assert [rung.trained for rung in choice.rungs] == [False] * 4 + [True] * 2

    # The numbers, by hand.
    choosing, judging = halves(fits.validation, 0)
    tuned = fits.variant("auto", CONFIG, choosing).fit(TUNED)
    ranks = [rank_queries(judging.scores(each), judging.caption_image) for each in (chosen.fuser, tuned)]
    rung = choice.rungs[-1]
    assert rung.choosing == choosing.rsum(chosen.fuser)
    assert rung.judging == metrics(ranks[0]).rsum
    assert rung.difference == bootstrap_difference(*ranks, judging.caption_image)
    assert rung.difference.low > 0
    for part in ("is surely better", f"{rung.difference.low:+.1f}", TUNED, "32 validation images"):
        assert part in choice.sentence()
    assert "sought anew" not in choice.sentence() and choice.regime.verdict == "foreign"
    assert json.loads(json.dumps(choice.to_dict()))["rungs"][-1]["difference"]["low"] == rung.difference.low


def test_what_is_not_surely_better_does_no_harm(fits, monkeypatch):
    trained_rungs(monkeypatch, lambda fits: {"no better": ScoreFusion([1.0, 1.0], fits.shapes)})
    chosen = choose(fits)
    choice = chosen.choice
    assert (choice.chosen, choice.candidate) == (TUNED, "no better")
    assert choice.rungs[-1].difference.low <= 0
    assert choice.sentence().startswith(f"{TUNED} is returned, since nothing trained is surely better: no better has")
    # Its weights are those of the whole validation part, and it says so.
    assert "sought anew on the whole validation part" in choice.sentence()
    everything = fits.fit(TUNED)
    assert list(choice.weights.values()) == pytest.approx(everything.weights.tolist())
    assert torch.allclose(chosen.fuser.weights, everything.weights[everything.weights > 0])


def test_the_test_items_and_the_judging_half_are_not_read_while_choosing(fits, encoders, monkeypatch):
    trained_rungs(monkeypatch, lambda fits: {"expert": Telling(encoders[0], fits.shapes)})
    judging = halves(fits.validation, 0)[1]
    test = fits.features.split("test")
    read, before = {"image": set(), "text": set()}, []
    for name in ("embeddings", "tokens"):
        original = getattr(FeatureStore, name)

        def recorded(store, rows, *limit, original=original):
            read[store.modality] |= set(rows.tolist())
            return original(store, rows, *limit)

        monkeypatch.setattr(FeatureStore, name, recorded)
    judge = auto._judged
    monkeypatch.setattr(
        auto, "_judged", lambda *args: before.append({m: set(rows) for m, rows in read.items()}) or judge(*args)
    )
    choose(fits)
    (chosen_by,) = before
    assert chosen_by["image"] and chosen_by["text"]
    assert chosen_by["image"].isdisjoint(judging.image_rows.tolist())
    assert chosen_by["text"].isdisjoint(judging.caption_rows.tolist())
    assert read["image"] >= set(judging.image_rows.tolist())
    assert read["image"].isdisjoint(test.image_rows.tolist())
    assert read["text"].isdisjoint(test.caption_rows.tolist())


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Too few validation images to judge by."""
    return toy_pairs(tmp_path_factory.mktemp("few"), {"train": 20, "val": 2 * SMALLEST_HALF - 1})


def test_too_few_validation_images_are_said_and_nothing_is_trained(few, tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "_trained_systems", None)
    encoders = {"toy-1": Toy(1, noise=0.0), "toy-2": Toy(2)}
    monkeypatch.setattr("modalloy.fusion.alloy.load_encoder", lambda spec: encoders[spec])
    alloy = fuse(list(encoders.values()), few, tmp_path, "auto", CONFIG)
    choice = json.loads((tmp_path / "choice.json").read_text())
    assert [choice[half]["images"] for half in ("choosing", "judging")] == [30, 29]
    assert "only 29 images and 58 captions, and to judge a trained fusion takes 30 images" in choice["sentence"]
    assert choice["candidate"] is None and all(rung["judging"] is None for rung in choice["rungs"])
    assert choice["regime"]["pairs"] == 20
    assert alloy.name == f"auto: {choice['chosen']}"
    # The encoder that nothing is taken from needn't run.
    assert [encoder.name for encoder in alloy.encoders] == ["toy-1"] and alloy.dim("image") == 7
    loaded = Alloy.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode_texts(["3 x"]).embedding, alloy.encode_texts(["3 x"]).embedding)


def test_a_part_of_one_image_is_too_few(tmp_path, encoders):
    collection = toy_pairs(tmp_path, {"train": 8, "val": 1})
    choice = choose(FusionFit(encoders, collection, CONFIG, tmp_path)).choice
    assert choice.images == (1, 0) and "only 0 images and 0 captions" in choice.sentence()


def test_the_settings_are_the_configured_one_and_the_other_start():
    def starts(**changes):
        settings = settings_of(replace(CONFIG, towers=replace(CONFIG.towers, **changes)), 13)
        assert {name: f"{config.towers.start} start" for name, config in settings.items()} == {n: n for n in settings}
        return list(settings)

    assert starts() == ["identity start", "random start"]
    assert starts(start="random") == ["random start", "identity start"]
    assert starts(start="random", output_dim=13) == ["random start", "identity start"]
    # Too narrow to pass the inputs through; and the authors' code has one start only.
    assert starts(start="random", output_dim=12) == ["random start"]
    assert starts(method="hada-original") == ["identity start"]


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    return toy_pairs(tmp_path_factory.mktemp("larger"), {"train": 150, "val": 80, "test": 4})


@pytest.mark.slow
def test_where_the_tokens_tell_more_a_trained_rung_is_returned_also_after_an_interruption(
    larger, encoders, tmp_path, monkeypatch
):
    alloy = fuse(encoders, larger, tmp_path / "whole", "auto", CONFIG)
    choice = json.loads((tmp_path / "whole/choice.json").read_text())
    assert choice["chosen"] == choice["candidate"] and choice["rungs"][-1]["name"] == MIXTURE
    assert len(choice["rungs"]) == 4 + 1 + 2 * 2 + 1
    chosen = next(rung for rung in choice["rungs"] if rung["name"] == choice["chosen"])
    assert chosen["difference"]["low"] > 0
    assert alloy.name == f"auto: {choice['chosen']}"
    if choice["chosen"] == MIXTURE:
        assert isinstance(alloy.fuser, Mixture) and sum(choice["weights"].values()) == pytest.approx(1)

    trained, train = [], workflow_fuse.fit_fuser

    def interrupted(*args, **settings):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(args)
        return train(*args, **settings)

    monkeypatch.setattr(workflow_fuse, "fit_fuser", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fuse(encoders, larger, tmp_path / "resumed", "auto", CONFIG)
    monkeypatch.setattr(workflow_fuse, "fit_fuser", train)
    resumed = fuse(encoders, larger, tmp_path / "resumed", "auto", CONFIG)
    assert json.loads((tmp_path / "resumed/choice.json").read_text()) == choice
    assert resumed.fingerprint("image").digest == alloy.fingerprint("image").digest


@pytest.mark.slow
def test_where_the_tokens_tell_nothing_the_simple_system_is_returned(larger, tmp_path):
    collection = replace(larger, features=tmp_path / "features")
    encoders = [Toy(1, noise=0.8, telling=False), Toy(2, noise=0.8, telling=False)]
    fits = FusionFit(encoders, collection, replace(CONFIG, first_stage=replace(TRAINING, epochs=1)), tmp_path)
    choice = choose(fits).choice
    assert choice.chosen == choice.simple == TUNED and "nothing trained is surely better" in choice.sentence()
