"""Fits on small real stores: each encoder's embedding knows a part of what its tokens know."""

import copy
import dataclasses
import json
import math
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from toy_pairs import SPLITS, TRAINING, Noisy, collection, features, new_fuser

from modalloy.data import Manifest
from modalloy.data.rand_augment import RandAugment
from modalloy.encoders.base import sha256_of_settings
from modalloy.errors import CheckpointError, ConfigError
from modalloy.features import extract
from modalloy.features.sources import AugmentedImages, Images
from modalloy.fusion import (
    FeatureSet,
    PairedFeatures,
    SplitFeatures,
    TowerFuser,
)
from modalloy.fusion.losses import matching_loss, positive_targets
from modalloy.fusion.original_hada import OriginalHadaConfig
from modalloy.training.batches import PairRows
from modalloy.training.fusion import _fingerprint, fit_fuser
from modalloy.training.fusion_module import FusionModule
from modalloy.training.fusion_training import FusionTraining
from modalloy.training.pair_features import PairBatch, PairFeatures

SETTINGS_FROM_THE_START = {
    *("epochs", "batch_size", "all_captions", "learning_rate", "final_learning_rate", "similarity_learning_rate"),
    *("weight_decay", "temperature", "momentum", "queue_size", "distillation", "patience", "seed"),
    "augment_probability",
}


@pytest.fixture(scope="module")
def paired(tmp_path_factory) -> PairedFeatures:
    root = tmp_path_factory.mktemp("collection")
    return features(collection(root / "pictures", SPLITS), root / "features")


def fit(paired, folder, fuser=None, training=TRAINING, **splits):
    """A fit on the train split, chosen on val; gives the fuser and its history."""
    fuser = new_fuser(paired) if fuser is None else fuser
    train, validation = splits.get("train", paired.split("train")), paired.split("val")
    return fuser, fit_fuser(fuser, training, train, validation, folder, "test")


def weights(module: nn.Module) -> list[float]:
    return torch.cat([tensor.flatten().double() for tensor in module.state_dict().values()]).tolist()


def module_of(paired, fuser=None, training=TRAINING, *, step: int = 2, steps: int = 4) -> FusionModule:
    """A module as in the middle of its first epoch, without a trainer."""
    fuser = new_fuser(paired, dropout=0.0) if fuser is None else fuser
    module = FusionModule(fuser, training, steps=100, validation=paired.split("val"))
    module._trainer = SimpleNamespace(num_training_batches=steps, global_step=step)
    module.logged = {}
    module.log_dict = lambda values, **_: module.logged.update(values)
    return module


def batch_of(paired, images: list[int], captions: list[int] | None = None):
    rows = torch.tensor(images)
    chosen = torch.tensor(captions) if captions else 2 * rows
    pairs = PairFeatures(paired.image, paired.text, paired.manifest.families)
    return pairs[PairRows(rows, chosen)]


# The step ------------------------------------------------------------------------------------------------


def naive_similarity(fuser: TowerFuser, image: list[Tensor], text: list[Tensor]) -> Tensor:
    """(1 - a) <h_p, h_s> + sum_i a_i <h_v_i, h_w_i> of one pair, given as its parts."""
    return sum(w * (v * t).sum() for w, v, t in zip(fuser.similarity(), image, text, strict=True))


def parts_of(fuser: TowerFuser, towers: nn.ModuleDict, modality: str, inputs) -> list[list[Tensor]]:
    """Each item's fused vector and weighted inputs' embeddings."""
    fused = towers[modality](inputs)
    chosen = [inputs[position].embedding for position in fuser.config.weighted_inputs]
    return [[fused[row], *(each[row] for each in chosen)] for row in range(len(fused))]


def naive_loss(
    fuser, momentum, batch, queue, temperature: float, share: float, image_to_text: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Loops over pairs. `queue` holds (image parts, text parts, image, family) of past pairs."""
    size = len(batch.images)
    sides = {}
    for modality in ("image", "text"):
        inputs = getattr(batch, modality)
        sides[modality] = (
            parts_of(fuser, fuser.towers, modality, inputs),
            parts_of(fuser, momentum, modality, inputs),
        )
    images = batch.images.tolist() + [entry[2] for entry in queue]
    families = batch.families.tolist() + [entry[3] for entry in queue]
    losses = []
    for modality, other, column in (("image", "text", 1), ("text", "image", 0)):
        keys = sides[other][1] + [entry[column] for entry in queue]
        for row in range(size):
            kept = [key for key in range(len(keys)) if images[key] == images[row] or families[key] != families[row]]
            positive = [images[key] == images[row] for key in kept]
            logits, momentum_logits = (
                torch.stack([naive_similarity(fuser, query[row], keys[key]) for key in kept]) / temperature
                for query in sides[modality]
            )
            target = torch.tensor(positive) / sum(positive)
            soft = share * momentum_logits.softmax(0).detach() + (1 - share) * target
            losses.append(-(soft * logits.log_softmax(0)).sum())
    contrastive = image_to_text * sum(losses[:size]) / size + (1 - image_to_text) * sum(losses[size:]) / size

    image, text = sides["image"][0], sides["text"][0]
    pairs = [(row, row, 1.0) for row in range(size)]
    for row in range(size):
        others = [k for k in range(size) if batch.families[k] != batch.families[row]]
        if others:
            pairs.append((row, max(others, key=lambda k: naive_similarity(fuser, image[row], text[k]).item()), 0.0))
            pairs.append((max(others, key=lambda k: naive_similarity(fuser, image[k], text[row]).item()), row, 0.0))
    matching = []
    for i, t, label in pairs:
        h, s = image[i][0], text[t][0]
        logit = fuser.matching.linear(torch.cat([h, s, (h - s).abs(), h * s]))[0]
        matching.append(nn.functional.softplus(-logit if label else logit))
    return contrastive, torch.stack(matching).mean()


def fill_queue(module: FusionModule, paired, images: list[int]) -> list[tuple]:
    """Queues random unit vectors of the given images; gives them as the naive loss reads them."""
    fuser = module.fuser
    widths = [fuser.fused_dim, *(fuser.shapes[p].dim for p in fuser.config.weighted_inputs)]
    torch.manual_seed(7)
    sides = [[normalize(torch.randn(len(images), w), dim=-1) for w in widths] for _ in range(2)]
    rows = torch.tensor(images, dtype=torch.long)
    families = paired.manifest.families[rows]
    module.queue.push(torch.cat(sides[0], 1), torch.cat(sides[1], 1), rows, families)
    module.queue.float()  # so that its products are exact; the values stay rounded
    return [
        (
            [part[row].bfloat16().float() for part in sides[0]],
            [part[row].bfloat16().float() for part in sides[1]],
            image,
            int(families[row]),
        )
        for row, image in enumerate(images)
    ]


@pytest.mark.parametrize(
    ("method", "weighted", "queued"),
    [
        ("hada", (), []),
        ("hada", (), [3, 0, 5, 9, 9, 1]),
        ("hada", (1,), [3, 0, 5, 9, 9, 1]),
        ("concat-linear", (1, 0), []),
        ("concat-linear", (1, 0), [3, 0, 5, 9, 9, 1]),
    ],
)
def test_the_loss_equals_its_definition_pair_by_pair(paired, method, weighted, queued):
    fuser = new_fuser(paired, method=method, dropout=0.0, weighted_inputs=weighted, start="random")
    if weighted:
        fuser.similarity.alpha.data = torch.tensor([0.3, 0.1][: len(weighted)])
    module = module_of(paired, fuser)
    for parameter in module.momentum_towers.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    queue = fill_queue(module, paired, queued)
    momentum = copy.deepcopy(module.momentum_towers)
    with torch.no_grad():
        for slow, fast in zip(momentum.parameters(), fuser.towers.parameters(), strict=True):
            slow.copy_(0.9 * slow + 0.1 * fast)
    batch = batch_of(paired, [0, 1, 5, 9, 9, 2], [0, 3, 10, 18, 19, 4])
    loss = module.training_step(batch, 0)
    expected = naive_loss(fuser, momentum, batch, queue, temperature=0.07, share=0.2)
    torch.testing.assert_close(module.logged["contrastive"], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.logged["matching"], expected[1], rtol=1e-4, atol=1e-5)
    trained = [*fuser.towers.parameters(), *fuser.matching.parameters()]
    trained += [fuser.similarity.alpha] if weighted else []
    ours = torch.autograd.grad(loss, trained)
    theirs = torch.autograd.grad(expected[0] + expected[1], trained)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=7),
    queued=st.lists(st.integers(0, 4), max_size=9),
    families=st.lists(st.integers(0, 2), min_size=5, max_size=5),
)
def test_captions_of_one_image_share_the_target_in_batch_and_queue(paired, pairs, queued, families):
    """As with `all_captions`, where a batch and the queue may hold an image many times."""
    module, family = module_of(paired), torch.tensor(families)
    dim = module.fuser.dim
    rows = torch.tensor(queued, dtype=torch.long)
    module.queue.push(torch.zeros(len(rows), dim), torch.zeros(len(rows), dim), rows, family[rows])
    images = torch.tensor([image for image, _ in pairs])
    positives, excluded = module._relations(PairBatch([], [], images, family[images]))
    targets = positive_targets(positives)
    keys = [image for image, _ in pairs] + module.queue.images.tolist()
    for row, (image, _) in enumerate(pairs):
        same = [key == image for key in keys]
        assert targets[row].tolist() == pytest.approx([each / sum(same) for each in same])
        related = [key != image and families[key] == families[image] for key in keys]
        assert excluded[row].tolist() == related


OPTIONS = [
    {"image_to_text_share": 0.3, "matching_weight": 0.25},
    {"image_to_text_share": 1.0, "matching_weight": 0.0},
    # So cold that the hardest are drawn.
    {"matching_negatives": "sampled", "temperature": 0.001},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_weighted_losses_equal_their_definition_pair_by_pair(paired, options):
    training = dataclasses.replace(TRAINING, **options)
    fuser = new_fuser(paired, dropout=0.0, start="random")
    module = module_of(paired, fuser, training)
    queue = fill_queue(module, paired, [3, 0, 5, 9, 9, 1])
    batch = batch_of(paired, [0, 1, 5, 9, 9, 2], [0, 3, 10, 18, 19, 4])
    momentum = copy.deepcopy(module.momentum_towers)
    loss = module.training_step(batch, 0)
    contrastive, matching = naive_loss(
        fuser, momentum, batch, queue, training.temperature, 0.2, training.image_to_text_share
    )
    expected = contrastive + training.matching_weight * matching
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    trained = list(fuser.towers.parameters())
    pairs = zip(torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained), strict=True)
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_without_weight_the_matching_loss_is_not_computed(paired, monkeypatch):
    monkeypatch.setattr("modalloy.training.fusion_module.matching_loss", lambda *_: pytest.fail("computed"))
    module = module_of(paired, training=dataclasses.replace(TRAINING, matching_weight=0.0))
    module.training_step(batch_of(paired, [0, 5, 9]), 0)
    assert set(module.logged) == {"contrastive"}


def test_negatives_are_drawn_at_the_learned_temperature(paired, monkeypatch):
    given_ = []
    original = matching_loss
    monkeypatch.setattr(
        "modalloy.training.fusion_module.matching_loss", lambda *args: given_.append(args[5]) or original(*args)
    )
    for negatives in ("hardest", "sampled"):
        module = module_of(paired, training=dataclasses.replace(TRAINING, matching_negatives=negatives))
        module.training_step(batch_of(paired, [0, 5, 9]), 0)
    assert given_[0] is None
    assert given_[1] == module.temperature and not given_[1].requires_grad


def test_a_bfloat16_queue_gives_nearly_the_same_loss(paired):
    batch, contrastive = batch_of(paired, [0, 1, 5, 9]), []
    for exact in (True, False):
        module = module_of(paired)
        fill_queue(module, paired, list(range(20, 40)))
        if not exact:
            for name in ("_image_vectors", "_text_vectors"):
                setattr(module.queue, name, getattr(module.queue, name).bfloat16())
        module.training_step(batch, 0)
        contrastive.append(module.logged["contrastive"].item())
    assert contrastive[0] == pytest.approx(contrastive[1], rel=0.01)


@pytest.mark.parametrize(("step", "steps", "share"), [(0, 4, 0.0), (2, 4, 0.2), (4, 4, 0.4), (99, 4, 0.4)])
def test_distillation_rises_over_the_first_epoch(paired, step, steps, share):
    module = module_of(paired, step=step, steps=steps)
    assert module._distillation_share() == pytest.approx(share)


def test_items_of_one_family_are_neither_positive_nor_negative(paired):
    module = module_of(paired)
    fill_queue(module, paired, [1, 0, 7, 2])
    batch = batch_of(paired, [0, 1, 7])
    positives, excluded = module._relations(batch)
    assert positives.int().tolist() == [
        [1, 0, 0, 0, 1, 0, 0],
        [0, 1, 0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 1, 0],
    ]
    assert excluded.int().tolist() == [
        [0, 1, 0, 1, 0, 0, 0],
        [1, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    dim = module.fuser.dim
    queries, keys = torch.randn(3, dim) / dim, torch.randn(3, dim) / dim
    probabilities = module._logits(queries, keys, module.queue.text_vectors, excluded).softmax(-1)
    assert not probabilities[excluded].any()
    assert (probabilities[~excluded] > 0).all()


@pytest.mark.parametrize("images", [[5, 5], [0, 1], [6]])
def test_a_batch_of_one_image_or_family_does_not_crash(paired, images):
    module = module_of(paired)
    loss = module.training_step(batch_of(paired, images), 0)
    assert loss.isfinite()
    loss.backward()
    gradients = [p.grad for p in module.fuser.towers.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_a_hostile_temperature_does_not_overflow(paired):
    training = dataclasses.replace(TRAINING, temperature=0.001)
    module = module_of(paired, training=training)
    fill_queue(module, paired, [1, 0, 7, 2])
    loss = module.training_step(batch_of(paired, [0, 1, 2, 9]), 0)
    loss.backward()
    assert loss.isfinite()
    assert module.temperature.grad is not None and module.temperature.grad.isfinite()


def test_a_pair_batch_moves_as_a_whole(paired):
    batch = batch_of(paired, [0, 1]).to(torch.device("meta"))
    assert {each.tokens.device.type for each in (*batch.image, *batch.text)} == {"meta"}
    assert batch.images.device.type == batch.families.device.type == "meta"


# Momentum and queue --------------------------------------------------------------------------------------


def test_momentum_encoders_start_as_copies_and_follow_slowly(paired):
    fuser = new_fuser(paired, start="random")
    module = FusionModule(fuser, TRAINING, 10, paired.split("val"))
    assert weights(module.momentum_towers) == weights(fuser.towers)
    assert not any(parameter.requires_grad for parameter in module.momentum_towers.parameters())
    start = {name: value.clone() for name, value in module.momentum_towers.named_parameters()}
    with torch.no_grad():
        for parameter in fuser.towers.parameters():
            parameter.add_(1.0)
    for steps in (1, 2):
        module._update_momentum()
        for name, value in module.momentum_towers.named_parameters():
            torch.testing.assert_close(value, start[name] + 1 - 0.9**steps)


def test_the_statistics_of_a_batch_norm_are_the_teachers_too(paired):
    fuser = new_fuser(paired, method="hada-original", original=OriginalHadaConfig(norm="batch"))
    module = FusionModule(fuser, TRAINING, 10, paired.split("val"))
    for statistics in fuser.towers.buffers():
        statistics.fill_(3)
    module._update_momentum()
    assert len(list(module.momentum_towers.buffers())) > 0
    assert all((statistics == 3).all() for statistics in module.momentum_towers.buffers())


def test_a_second_stage_distils_from_the_first(paired):
    first = new_fuser(paired, start="random")
    second = first.second_stage([0])
    module = FusionModule(second, TRAINING, 10, paired.split("val"))
    assert weights(module.momentum_towers) == weights(first.towers)


def test_a_step_queues_the_momentum_encoders_vectors_unweighted(paired):
    module = module_of(paired, new_fuser(paired, dropout=0.0, weighted_inputs=(1,)))
    batch = batch_of(paired, [4, 8, 9])
    module.training_step(batch, 0)
    assert len(module.queue) == 0  # the gradient still needs it as it was
    module.on_train_batch_end(None, batch, 0)
    for modality, queued in (("image", module.queue.image_vectors), ("text", module.queue.text_vectors)):
        inputs = getattr(batch, modality)
        expected = torch.cat([module.momentum_towers[modality](inputs), inputs[1].embedding], dim=-1)
        assert torch.equal(queued, expected.bfloat16())
    assert module.queue.images.tolist() == [4, 8, 9]
    assert module.queue.families.tolist() == paired.manifest.families[[4, 8, 9]].tolist()


def test_temperature_and_similarity_weights_are_clamped_after_a_step(paired):
    module = module_of(paired, new_fuser(paired, dropout=0.0, weighted_inputs=(1,)))
    for temperature, alpha, clamped in ((-1.0, 5.0, (0.001, 0.9)), (3.0, -5.0, (0.5, 0.1))):
        module.training_step(batch_of(paired, [4, 8]), 0)
        module.temperature.data.fill_(temperature)
        module.fuser.similarity.alpha.data.fill_(alpha)
        module.on_train_batch_end()
        found = (module.temperature.item(), module.fuser.similarity.alpha.item())
        assert found == pytest.approx(clamped)


# The optimiser -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [(), (1, 0)])
def test_weights_alone_decay_and_similarity_weights_have_their_own_rate(paired, weighted):
    fuser = new_fuser(paired, weighted_inputs=weighted)
    module = FusionModule(fuser, TRAINING, 10, paired.split("val"))
    settings = module.configure_optimizers()
    optimizer, schedule = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    named = {name: p for name, p in module.named_parameters() if p.requires_grad and p.numel()}
    assert set(of) == {id(parameter) for parameter in named.values()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(of)
    for name, parameter in named.items():
        group = of[id(parameter)]
        plain = name.endswith("bias") or name in ("temperature", "fuser.similarity.alpha")
        assert group["weight_decay"] == (0 if plain else TRAINING.weight_decay), name
        own = name == "fuser.similarity.alpha"
        rate = TRAINING.similarity_learning_rate if own else TRAINING.learning_rate
        assert group["lr"] == pytest.approx(rate), name
    floor = TRAINING.final_learning_rate / TRAINING.learning_rate
    factors = [schedule.lr_lambdas[0](step) for step in (0, 5, 10)]
    assert factors == pytest.approx([1.0, (1 + floor) / 2, floor])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 1}, "batch_size at least 2"),
        ({"momentum": 1.1}, r"momentum must lie in \[0, 1\]"),
        ({"distillation": -0.1}, "distillation"),
        ({"augment_probability": 1.1}, r"augment_probability must lie in \[0, 1\]"),
        ({"distillation": math.nan}, "distillation"),
        ({"temperature": 0.0}, r"temperature must lie in \[0.001, 0.5\]"),
        ({"temperature": 0.6}, "temperature"),
        ({"learning_rate": 0.0, "final_learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"final_learning_rate": 1.0}, "final_learning_rate between 0 and it"),
        ({"similarity_learning_rate": -1.0}, "similarity_learning_rate must be at least 0"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"queue_size": -1}, "queue_size must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"image_to_text_share": 1.5}, r"image_to_text_share must lie in \[0, 1\]"),
        ({"matching_weight": -1.0}, "matching_weight must be at least 0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1 pair, got 0"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"restart_epochs": 0}, "restart_epochs must be at least 1"),
        ({"gradient_clip": 0.0}, "gradient_clip must be above 0, got 0.0; leave it out"),
        ({"gradient_clip": math.nan}, "gradient_clip"),
        ({"warmup": 1.0}, r"warmup must lie in \[0, 1\)"),
        ({"min_delta": -1.0}, "min_delta must be at least 0"),
        ({"prefixes": (4, 0)}, r"prefixes must be different lengths of at least 1, got \[4, 0\]"),
        ({"prefixes": (4, 4)}, "prefixes must be different lengths"),
        ({"teacher_temperature": 0.0}, "teacher_temperature must be above 0, got 0.0"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TRAINING, **changes)


@pytest.mark.parametrize(
    ("name", "message"),
    [("precision", "one of fp32, bf16, got 'x'"), ("schedule", "cosine, restarts, constant, got 'x'")],
)
def test_unknown_names_are_refused(name, message):
    training = dataclasses.replace(TRAINING)
    object.__setattr__(training, name, "x")  # past the type checks that only the tests have
    with pytest.raises(ConfigError, match=message):
        training.__post_init__()


# Fitting -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(paired, tmp_path_factory):
    """An uninterrupted fit: its folder, its fuser, and its history."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *fit(paired, folder)


def test_hada_learns_from_tokens_what_the_embeddings_do_not_show(paired, tmp_path):
    training = dataclasses.replace(TRAINING, epochs=24, learning_rate=2e-2, momentum=0.5, queue_size=12, patience=24)
    fuser, history = fit(paired, tmp_path, training=training)
    start, best = history[0]["validation_rsum"], max(row["validation_rsum"] for row in history)
    assert best > start + 100
    assert paired.split("val").rsum(fuser) == pytest.approx(best)
    first, last = history[1], history[-1]
    assert last["matching"] < first["matching"]


def test_the_history_starts_before_training_and_the_best_epoch_is_kept(paired, whole):
    folder, fuser, history = whole
    assert [row["epoch"] for row in history] == [0, 1, 2, 3]
    assert history[0]["validation_rsum"] == pytest.approx(paired.split("val").rsum(new_fuser(paired)))
    best = max(row["validation_rsum"] for row in history)
    assert paired.split("val").rsum(fuser) == pytest.approx(best)
    assert sorted(path.name for path in folder.iterdir()) == ["fit.json", "metrics.jsonl", "model.safetensors"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == history[1:]


def test_a_finished_fit_is_loaded_without_training(paired, whole, monkeypatch):
    folder, fuser, history = whole
    monkeypatch.setattr(FusionModule, "__init__", lambda *_: pytest.fail("trained again"))
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again, found = fit(paired, folder)
    assert weights(again) == weights(fuser)
    assert found == history
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == files


class Interrupted(Exception):
    pass


@contextmanager
def interrupted_in(epoch, monkeypatch):
    """A fit within it must be interrupted in the middle of that epoch."""
    original = FusionModule.training_step

    def training_step(self, batch, batch_index):
        if self.current_epoch == epoch and batch_index == 2:
            raise Interrupted
        return original(self, batch, batch_index)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(FusionModule, "training_step", training_step)
        yield


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_interrupted_fit_goes_on_and_ends_the_same(paired, whole, tmp_path, monkeypatch, epoch):
    """Stopped in the middle of an epoch, the last one included."""
    with interrupted_in(epoch, monkeypatch):
        fit(paired, tmp_path)
    fuser, history = fit(paired, tmp_path)
    _, expected, expected_history = whole
    assert weights(fuser) == weights(expected)
    assert history == expected_history


def test_an_interrupted_fit_with_every_option_goes_on_and_ends_the_same(paired, tmp_path, monkeypatch):
    changes = dict(matching_negatives="sampled", chunk_size=5, captions_per_image=2, averaged=True)
    training = dataclasses.replace(TRAINING, image_to_text_share=0.3, matching_weight=0.5, **changes)
    expected = fit(paired, tmp_path / "whole", training=training)
    with interrupted_in(1, monkeypatch):
        fit(paired, tmp_path / "resumed", training=training)
    fuser, history = fit(paired, tmp_path / "resumed", training=training)
    assert (weights(fuser), history) == (weights(expected[0]), expected[1])


def test_a_fit_interrupted_before_its_record_was_written_is_finished(paired, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("modalloy.training.fusion.write_json", lambda *_: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            fit(paired, tmp_path)
    fuser, history = fit(paired, tmp_path)
    assert (weights(fuser), history) == (weights(whole[1]), whole[2])


def test_another_configuration_or_start_is_fitted_anew(paired, tmp_path):
    short = dataclasses.replace(TRAINING, epochs=1, patience=1)
    fast = dataclasses.replace(short, learning_rate=4e-3)
    # The histories, since a fit without a better epoch ends with its start.
    made = [
        fit(paired, tmp_path / "shared", new_fuser(paired, seed), training)[1]
        for seed, training in ((0, short), (1, short), (1, fast))
    ]
    assert len({history[1]["contrastive"] for history in made}) == 3
    assert made[2] == fit(paired, tmp_path / "fresh", new_fuser(paired, 1), fast)[1]


def test_all_that_decides_the_result_is_part_of_its_fingerprint(paired, tmp_path):
    fuser, train, validation = new_fuser(paired), paired.split("train"), paired.split("val")
    reference = _fingerprint(fuser, TRAINING, train, validation)
    assert _fingerprint(new_fuser(paired), TRAINING, train, validation) == reference
    loose = Manifest(paired.manifest.root, tuple(dataclasses.replace(item, family=None) for item in paired.manifest))
    regrouped = PairedFeatures(loose, paired.image, paired.text)
    fewer = SplitFeatures(paired, train.image_rows, train.caption_rows[1:], train.caption_image[1:])
    others = [
        (regrouped.split("train"), regrouped.split("val")),
        (fewer, validation),
        (train, paired.split("train")),
    ]
    assert reference not in [_fingerprint(fuser, TRAINING, *each) for each in others]
    retrained = features(paired.manifest, tmp_path, weights="c")
    assert _fingerprint(fuser, TRAINING, retrained.split("train"), retrained.split("val")) != reference
    assert _fingerprint(new_fuser(paired, seed=1), TRAINING, train, validation) != reference
    other_layers = new_fuser(paired, dropout=0.2)
    other_layers.load_state_dict(fuser.state_dict())
    assert _fingerprint(other_layers, TRAINING, train, validation) != reference
    assert _fingerprint(fuser, dataclasses.replace(TRAINING, seed=1), train, validation) != reference


def test_the_start_is_restored_if_no_epoch_is_better(paired, tmp_path):
    hopeless = dataclasses.replace(TRAINING, epochs=2, learning_rate=5.0, final_learning_rate=5.0)
    expected = weights(new_fuser(paired))
    fuser, history = fit(paired, tmp_path, training=hopeless)
    assert max(row["validation_rsum"] for row in history[1:]) <= history[0]["validation_rsum"]
    assert weights(fuser) == expected
    again, _ = fit(paired, tmp_path, training=hopeless)
    assert weights(again) == expected


def test_the_second_stages_share_is_learned(paired, whole, tmp_path):
    second = whole[1].second_stage([0])
    training = dataclasses.replace(TRAINING, similarity_learning_rate=0.1)
    module = FusionModule(second, training, 20, paired.split("val"))
    module._trainer = SimpleNamespace(num_training_batches=4, global_step=0)
    module.log_dict = lambda *_, **__: None
    optimizer = module.configure_optimizers()["optimizer"]
    for step in range(5):
        optimizer.zero_grad()
        module.training_step(batch_of(paired, list(range(step, step + 12))), step).backward()
        optimizer.step()
        module.on_train_batch_end()
    # The embeddings are nearly noise here, so their share falls.
    assert 0.1 <= second.similarity.alpha.item() < 0.4
    _, history = fit(paired, tmp_path, second)
    assert history[0]["epoch"] == 0


def test_no_queue_and_no_distillation_are_possible(paired, tmp_path):
    training = dataclasses.replace(TRAINING, epochs=1, queue_size=0, distillation=0.0, momentum=0.0)
    fuser, history = fit(paired, tmp_path, training=training)
    assert len(history) == 2
    assert all(math.isfinite(value) for value in weights(fuser))


def test_the_random_numbers_of_the_caller_are_left_alone(paired, tmp_path):
    fuser = new_fuser(paired)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    fit(paired, tmp_path, fuser, dataclasses.replace(TRAINING, epochs=1))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "isn't the file that fit.json describes"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "isn't the file that fit.json"),
        (lambda folder: (folder / "fit.json").write_text("[]"), "isn't the record of a fit"),
        (lambda folder: (folder / "fit.json").write_text('{"fingerprint": "a"}'), "isn't the record of a fit"),
        (lambda folder: (folder / "fit.json").write_text("{"), "isn't JSON"),
    ],
)
def test_a_damaged_fit_is_refused(paired, whole, tmp_path, damage, message):
    for path in whole[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert weights(fit(paired, tmp_path)[0]) == weights(whole[1])
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        fit(paired, tmp_path)


def test_an_epoch_may_visit_every_caption(paired, tmp_path, monkeypatch):
    seen, queues = [], []
    original = FusionModule.training_step

    def training_step(self, batch, batch_index):
        seen.append(tuple(batch.text[0].embedding[:, 0].tolist()))
        queues.append(len(self.queue.images))
        return original(self, batch, batch_index)

    monkeypatch.setattr(FusionModule, "training_step", training_step)
    training = dataclasses.replace(TRAINING, epochs=2, all_captions=True, queue_size=1000)
    fit(paired, tmp_path, training=training)
    captions = paired.text.embeddings(0, paired.split("train").caption_rows)[:, 0]
    assert sorted(sum(seen, ())) == sorted(2 * captions.tolist())
    assert max(queues) == 2 * SPLITS["train"]

    def fingerprint(training: FusionTraining) -> str:
        return _fingerprint(new_fuser(paired), training, paired.split("train"), paired.split("val"))

    assert fingerprint(training) != fingerprint(dataclasses.replace(training, all_captions=False))


# Augmented copies ----------------------------------------------------------------------------------------


class Renumbered(AugmentedImages):
    """Copies that the encoders take for other items: copy c of image n for item n + 100 + 50 c."""

    def load(self, row):
        number = Images.load(self, row).getpixel((0, 0))[0]
        return Image.new("RGB", (2, 2), (100 + 50 * self._copy + number, 0, 0))


def augmented_features(paired: PairedFeatures, folder: Path, copies: int, weights: str = "a") -> PairedFeatures:
    """The same features, with copies of the training images."""
    stores = [
        [
            extract(
                Noisy(k, weights),
                "image",
                paired.manifest,
                folder / f"{k}-{copy}",
                workers=1,
                progress=False,
                source=Renumbered(paired.manifest, RandAugment(), copy),
            )
            for copy in range(copies)
        ]
        for k in range(2)
    ]
    return PairedFeatures(paired.manifest, FeatureSet(paired.image.stores, stores), paired.text)


@pytest.fixture(scope="module")
def augmented(paired, tmp_path_factory) -> PairedFeatures:
    return augmented_features(paired, tmp_path_factory.mktemp("augmented"), 2)


def seen_in(monkeypatch, paired, folder, training) -> list[tuple[int, tuple[int, ...]]]:
    """Of each image of a training, its row and the number that each encoder took it for."""
    seen = []
    known = {}
    for k, store in enumerate(paired.image.stores):
        for plain, each in ((True, store), *((False, each) for each in paired.image.augmented[k].stores)):
            for row, vector in enumerate(each.embeddings()):
                copy = 0 if plain else 100 + 50 * paired.image.augmented[k].stores.index(each)
                known[k, tuple(vector.tolist())] = row + copy
    original = FusionModule.training_step

    def training_step(self, batch, batch_index):
        for place, row in enumerate(batch.images.tolist()):
            numbers = tuple(known[k, tuple(each.embedding[place].tolist())] for k, each in enumerate(batch.image))
            seen.append((row, numbers))
        return original(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(FusionModule, "training_step", training_step)
        fit(paired, folder, training=training)
    return seen


def test_images_are_replaced_by_their_own_copies_with_the_given_chance(augmented, tmp_path, monkeypatch):
    training = dataclasses.replace(TRAINING, epochs=8, patience=8)
    seen = seen_in(monkeypatch, augmented, tmp_path, training)
    assert len(seen) == 8 * SPLITS["train"]
    counts = {0: 0, 100: 0, 150: 0}
    for row, numbers in seen:
        assert len(set(numbers)) == 1, "both encoders see the same copy"
        counts[numbers[0] - row] += 1
    assert counts[0] / len(seen) == pytest.approx(0.25, abs=0.07)
    assert counts[100] / len(seen) == pytest.approx(0.375, abs=0.08)


@pytest.mark.parametrize(("probability", "plain"), [(0.0, True), (1.0, False)])
def test_no_chance_replaces_no_image_and_certainty_every_one(augmented, tmp_path, monkeypatch, probability, plain):
    training = dataclasses.replace(TRAINING, epochs=1, augment_probability=probability)
    seen = seen_in(monkeypatch, augmented, tmp_path, training)
    assert {number == row for row, numbers in seen for number in numbers} == {plain}


def test_validation_and_captions_are_not_augmented(augmented, tmp_path, monkeypatch):
    asked = []
    original = FeatureSet.batch

    def batch(self, rows, tokens=True, copies=None):
        asked.append((self.modality, copies is not None, rows.tolist()))
        return original(self, rows, tokens, copies)

    monkeypatch.setattr(FeatureSet, "batch", batch)
    fit(augmented, tmp_path, training=dataclasses.replace(TRAINING, epochs=1))
    chosen = [(modality, rows) for modality, with_copies, rows in asked if with_copies]
    assert chosen and {modality for modality, _ in chosen} == {"image"}
    train = set(augmented.split("train").image_rows.tolist())
    assert {row for _, rows in chosen for row in rows} == train
    validation = set(augmented.split("val").image_rows.tolist())
    assert validation == {row for modality, c, rows in asked for row in rows if modality == "image" and not c}


@pytest.mark.parametrize("epoch", [0, 2])
def test_an_interrupted_augmented_fit_goes_on_and_ends_the_same(paired, augmented, tmp_path, monkeypatch, epoch):
    expected, expected_history = fit(augmented, tmp_path / "whole")
    with interrupted_in(epoch, monkeypatch):
        fit(augmented, tmp_path / "resumed")
    fuser, history = fit(augmented, tmp_path / "resumed")
    assert (weights(fuser), history) == (weights(expected), expected_history)
    assert history[1:] != fit(paired, tmp_path / "plain")[1][1:]


def test_copies_are_part_of_the_fingerprint_only_where_they_are_used(paired, augmented, tmp_path):
    fuser = new_fuser(paired)

    def fingerprint(features: PairedFeatures, **changes) -> str:
        training = dataclasses.replace(TRAINING, **changes)
        return _fingerprint(fuser, training, features.split("train"), features.split("val"))

    plain = fingerprint(paired)
    assert fingerprint(paired, augment_probability=0.1) == plain
    assert fingerprint(augmented, augment_probability=0.0) == plain
    single = augmented_features(paired, tmp_path / "single", 1)
    used = [fingerprint(augmented), fingerprint(augmented, augment_probability=0.1), fingerprint(single)]
    assert len({plain, *used}) == 4


def test_without_copies_their_probability_is_not_in_the_fingerprint(paired):
    settings = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modalloy.training.fusion.sha256_of_settings", lambda value: settings.append(value) or "")
        _fingerprint(new_fuser(paired), TRAINING, paired.split("train"), paired.split("val"))
    assert settings[0]["training"].keys() == SETTINGS_FROM_THE_START - {"augment_probability"}
    assert set(settings[0]) == {
        *("recipe", "fuser", "training", "start", "features", "collection", "families", "captions")
    }


def test_settings_that_came_later_count_only_away_from_their_defaults():
    """So that what was fitted before they came is still taken for what it is."""
    assert TRAINING.deciding().keys() == SETTINGS_FROM_THE_START
    # What FusionTraining's settings hashed to before the later ones.
    digest = "02b7308ad68e986044dd7b5d6f1a3664f80894bd3b6a1e21b550e1dfd9bdc7ca"
    assert sha256_of_settings(FusionTraining().deciding()) == digest
    changed = {"precision": "bf16", "accumulate": 2, "gradient_clip": 1.0, "schedule": "constant", "warmup": 0.5}
    changed |= {"image_to_text_share": 0.3, "matching_weight": 0.0, "matching_negatives": "sampled", "chunk_size": 4}
    changed |= {"captions_per_image": 2, "averaged": True}
    changed |= {"prefixes": (2, 4), "teacher_temperature": 0.05}
    assert dataclasses.replace(TRAINING, **changed).deciding() == {**TRAINING.deciding(), **changed}


def test_copies_that_are_lacking_are_counted_once(paired, augmented, tmp_path, caplog):
    few = Manifest(paired.manifest.root, paired.manifest.items[:40])
    first = extract(
        Noisy(0), "image", few, tmp_path / "few", workers=1, progress=False, source=Renumbered(few, RandAugment(), 0)
    )
    lacking = PairedFeatures(
        paired.manifest, FeatureSet(paired.image.stores, [[first], augmented.image.augmented[1].stores]), paired.text
    )
    short = dataclasses.replace(TRAINING, epochs=2)
    with caplog.at_level("WARNING"):
        fit(lacking, tmp_path / "fit", training=short)
    assert [record.message for record in caplog.records if "lacks" in record.message] == [
        "encoder 0 lacks 8 of 48 augmented copies of the training images; the images themselves stand in."
    ]
    caplog.clear()
    fit(augmented, tmp_path / "whole", training=dataclasses.replace(short, epochs=1))
    assert not [record for record in caplog.records if "lacks" in record.message]


@pytest.mark.parametrize("weighted", [(), (1, 0)])
def test_an_image_with_several_captions_is_fused_once_to_the_same_loss_and_gradient(paired, weighted):
    rows = PairRows(torch.tensor([3, 3, 5, 7, 7]), torch.tensor([6, 7, 10, 15, 14]))
    found = []
    for grouped in (True, False):
        fuser = new_fuser(paired, dropout=0.0, weighted_inputs=weighted)
        module = module_of(paired, fuser)
        batch = PairFeatures(paired.image, paired.text, paired.manifest.families, grouped=grouped)[rows]
        assert len(batch.image[0].embedding) == (3 if grouped else 5)
        loss = module.training_step(batch, 0)
        loss.backward()
        found.append((loss, [parameter.grad for parameter in fuser.parameters()]))
    (loss, gradients), (expected, expected_gradients) = found
    torch.testing.assert_close(loss, expected)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_the_averaged_encoders_are_what_is_validated_and_kept(paired, tmp_path):
    training = dataclasses.replace(TRAINING, averaged=True, captions_per_image=2, momentum=0.5)
    fuser, history = fit(paired, tmp_path / "averaged", training=training)
    best = max(row["validation_rsum"] for row in history)
    assert paired.split("val").rsum(fuser) == pytest.approx(best, abs=1e-3)
    plain, _ = fit(paired, tmp_path / "plain", training=dataclasses.replace(training, averaged=False))
    assert weights(fuser.towers) != weights(plain.towers)


def test_with_averaging_the_result_has_the_momentum_towers_and_the_trained_rest(paired):
    module = module_of(paired, training=dataclasses.replace(TRAINING, averaged=True))
    for parameter in module.momentum_towers.parameters():
        parameter.data.add_(1)
    result = module.result()
    assert weights(result.towers) == weights(module.momentum_towers) != weights(module.fuser.towers)
    assert weights(result.matching) == weights(module.fuser.matching)
    plain = module_of(paired)
    assert plain.result() is plain.fuser


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"all_captions": True, "captions_per_image": 2}, "all_captions already visits every caption"),
        ({"batch_size": 5, "captions_per_image": 3}, "at least twice captions_per_image, got 5 and 3"),
        ({"captions_per_image": 0}, "captions_per_image must be at least 1, got 0"),
        (
            {"batch_size": 12, "captions_per_image": 5, "devices": 3},
            "devices times captions_per_image, got 12, 3",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_when_made(settings, message):
    with pytest.raises(ConfigError, match=message):
        FusionTraining(**settings)


def test_the_numbers_on_edges_do_not_decay(paired):
    module = module_of(paired, new_fuser(paired, edges="learned"))
    groups = module.configure_optimizers()["optimizer"].param_groups
    table = module.fuser.towers["image"].edges.table
    (group,) = [each for each in groups if any(parameter is table for parameter in each["params"])]
    assert group["weight_decay"] == 0 < groups[0]["weight_decay"]


def test_an_image_without_captions_in_the_validation_gallery_counts(paired):
    validation = paired.split("val")
    more = dataclasses.replace(validation, image_rows=torch.cat([validation.image_rows, torch.tensor([0])]))
    digests = {_fingerprint(new_fuser(paired), TRAINING, paired.split("train"), each) for each in (validation, more)}
    assert len(digests) == 2
