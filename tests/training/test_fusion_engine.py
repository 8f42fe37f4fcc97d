"""What the settings of the engine change in a fit: precision, accumulation, schedules, clipping, stopping."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toy_pairs import SPLITS, TRAINING, collection, features, new_fuser

from modalloy.fusion import PairedFeatures, SplitFeatures
from modalloy.training import fusion_module
from modalloy.training.batches import PairSampler, pair_loader
from modalloy.training.fusion import fit_fuser
from modalloy.training.fusion_module import FusionModule
from modalloy.training.pair_features import PairFeatures
from modalloy.training.trainer import fit as trainer_fit


@pytest.fixture(scope="module")
def paired(tmp_path_factory) -> PairedFeatures:
    root = tmp_path_factory.mktemp("collection")
    return features(collection(root / "pictures", SPLITS), root / "features")


def fit(paired, folder, fuser=None, **changes):
    fuser = new_fuser(paired, dropout=0.0) if fuser is None else fuser
    training = dataclasses.replace(TRAINING, **changes)
    return fuser, fit_fuser(fuser, training, paired.split("train"), paired.split("val"), folder, "test")


def weights(module: nn.Module) -> list[float]:
    return torch.cat([tensor.flatten().double() for tensor in module.state_dict().values()]).tolist()


@pytest.fixture
def watched(monkeypatch):
    """Each optimiser step: the learning rates and the momentum update beside it; the modules that trained."""
    seen = {"modules": [], "rates": [], "momentum": 0, "pushed": [], "shares": []}
    init, update, share = FusionModule.__init__, FusionModule._update_momentum, FusionModule._distillation_share
    step, push = FusionModule.optimizer_step, fusion_module.MomentumQueue.push

    def watched_init(self, *args):
        init(self, *args)
        seen["modules"].append(self)

    def watched_update(self):
        seen["momentum"] += 1
        update(self)

    def watched_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        seen["rates"].append([group["lr"] for group in optimizer.param_groups])
        step(self, epoch, batch_idx, optimizer, optimizer_closure)

    def watched_share(self):
        seen["shares"].append(share(self))
        return seen["shares"][-1]

    def watched_push(self, *rows):
        seen["pushed"].append(len(rows[0]))
        push(self, *rows)

    monkeypatch.setattr(FusionModule, "__init__", watched_init)
    monkeypatch.setattr(FusionModule, "_update_momentum", watched_update)
    monkeypatch.setattr(FusionModule, "optimizer_step", watched_step)
    monkeypatch.setattr(FusionModule, "_distillation_share", watched_share)
    monkeypatch.setattr(fusion_module.MomentumQueue, "push", watched_push)
    return seen


@pytest.mark.parametrize("method", ["hada", "concat-linear", "hada-original"])
def test_bf16_gives_about_the_same_and_leaves_all_but_the_layers_in_fp32(paired, tmp_path, monkeypatch, method):
    seen, losses, matched = [], [], []
    contrastive_loss, matching_loss = fusion_module.contrastive_loss, fusion_module.matching_loss
    rsum, update = SplitFeatures.rsum, FusionModule._update_momentum

    def watched_contrast(logits, targets):
        losses.append((logits.dtype, targets.dtype))
        return contrastive_loss(logits, targets)

    def watched_matching(head, image, *rest):
        with_head = torch.is_autocast_enabled("cpu")
        matched.append((image.dtype, with_head))
        return matching_loss(head, image, *rest)

    def watched_rsum(self, fuser):
        seen.append(torch.is_autocast_enabled("cpu"))
        return rsum(self, fuser)

    monkeypatch.setattr(fusion_module, "contrastive_loss", watched_contrast)
    monkeypatch.setattr(fusion_module, "matching_loss", watched_matching)
    monkeypatch.setattr(SplitFeatures, "rsum", watched_rsum)
    in_bf16 = []
    monkeypatch.setattr(
        FusionModule, "_update_momentum", lambda self: (in_bf16.append(torch.is_autocast_enabled("cpu")), update(self))
    )
    runs = {}
    for precision in ("fp32", "bf16"):
        in_bf16.clear()
        fuser = new_fuser(paired, dropout=0.0, method=method)
        runs[precision] = fit(paired, tmp_path / precision, fuser, epochs=2, precision=precision)
        assert set(in_bf16) == {precision == "bf16"}
        assert {tensor.dtype for tensor in fuser.state_dict().values()} == {torch.float32}
    assert set(losses) == {(torch.float32, torch.float32)}
    assert set(matched) == {(torch.float32, False)}
    assert set(seen) == {False}
    rows = zip(runs["fp32"][1][1:], runs["bf16"][1][1:], strict=True)
    for exact, rounded in rows:
        assert rounded["contrastive"] == pytest.approx(exact["contrastive"], rel=0.02)
        assert rounded["matching"] == pytest.approx(exact["matching"], rel=0.02)
    assert runs["fp32"][1][1:] != runs["bf16"][1][1:]


@pytest.mark.parametrize(("accumulate", "steps_an_epoch"), [(1, 4), (2, 2), (3, 2)])
def test_what_counts_in_steps_counts_them_and_the_queue_counts_pairs(
    paired, tmp_path, watched, accumulate, steps_an_epoch
):
    fit(paired, tmp_path, accumulate=accumulate, epochs=3, patience=3)
    (module,) = watched["modules"]
    steps = 3 * steps_an_epoch
    assert module.steps == steps and module.momentum == 0.9
    assert watched["momentum"] == len(watched["rates"]) == steps
    # The rate that a further step would have.
    last = module.lr_schedulers().get_last_lr()[0]
    assert last == pytest.approx(TRAINING.final_learning_rate)
    assert watched["rates"][0][0] == pytest.approx(TRAINING.learning_rate)
    assert watched["pushed"] == [12] * 12
    # From the second epoch on the teacher has its whole share.
    assert watched["shares"][0] == 0 and watched["shares"][3] < 0.4
    assert watched["shares"][4:] == pytest.approx([0.4] * 8)


def trained_module(paired, folder, training, epochs=1, **options):
    """A module trained by the engine, whatever its validation says; and the batches that it saw."""
    split = paired.split("train")
    sampler = PairSampler(
        paired.manifest.caption_image, caption_rows=split.caption_rows, batch_size=training.batch_size, seed=0
    )
    pairs = PairFeatures(paired.image, paired.text, paired.manifest.families)
    steps = training.steps_an_epoch(len(sampler)) * epochs
    module = FusionModule(new_fuser(paired, dropout=0.0), training, steps, paired.split("val"))
    arguments = dict(description="", fingerprint="a" * 64, accumulate=training.accumulate)
    trainer_fit(module, pair_loader(pairs, sampler), folder, epochs=epochs, seed=0, **(arguments | options))
    return module, [pairs[rows] for rows in sampler]


def test_accumulated_batches_give_the_step_of_their_mean_loss(paired, tmp_path):
    """Against plain autograd over the mean of the losses, without a queue, which the second batch sees changed."""
    training = dataclasses.replace(TRAINING, queue_size=0, accumulate=3, schedule="constant")
    ours, batches = trained_module(paired, tmp_path, training)
    assert len(batches) == 4  # a step of three and one of a single batch
    reference = FusionModule(new_fuser(paired, dropout=0.0), training, 2, paired.split("val"))
    reference._trainer = SimpleNamespace(num_training_batches=4, global_step=0)
    reference.log_dict = lambda *_, **__: None
    optimizer = reference.configure_optimizers()["optimizer"]
    for step, group in enumerate((batches[:3], batches[3:])):
        reference._trainer.global_step = step
        optimizer.zero_grad()
        losses = [reference.training_step(batch, 3 * step + position) for position, batch in enumerate(group)]
        torch.stack(losses).mean().backward()
        optimizer.step()
        reference.on_train_batch_end()
    assert weights(ours) == pytest.approx(weights(reference), rel=1e-4, abs=1e-6)
    assert weights(ours.fuser) != pytest.approx(weights(new_fuser(paired, dropout=0.0)), rel=1e-4, abs=1e-6)


def half_cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


@pytest.mark.parametrize(
    ("changes", "factors"),
    [
        ({}, [1.0, half_cosine(6 / 12), 0.0]),
        ({"warmup": 0.5}, [1 / 7, 1.0, 0.0]),
        ({"schedule": "constant"}, [1.0, 1.0, 1.0]),
        # Twelve steps are three epochs: cosines of 4, of 8 and of 16 steps.
        ({"schedule": "restarts", "restart_epochs": 1}, [1.0, half_cosine(2 / 8), 1.0]),
        (
            {"schedule": "restarts", "restart_epochs": 1, "warmup": 1 / 12},
            [0.5, half_cosine(1 / 8), half_cosine(7 / 8)],
        ),
    ],
)
def test_schedules_run_between_the_highest_and_the_final_learning_rate(paired, changes, factors):
    training = dataclasses.replace(TRAINING, final_learning_rate=0.0, **changes)
    module = FusionModule(new_fuser(paired), training, 12, paired.split("val"))
    schedule = module.configure_optimizers()["lr_scheduler"]["scheduler"]
    assert [schedule.lr_lambdas[0](step) for step in (0, 6, 12)] == pytest.approx(factors)


def test_the_gradient_is_clipped_and_small_gains_do_not_count(paired, tmp_path, monkeypatch):
    norms, end = [], FusionModule.on_train_batch_end

    def watched_end(self, *args):
        norms.append(float(torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm()))
        end(self, *args)

    monkeypatch.setattr(FusionModule, "on_train_batch_end", watched_end)
    _, history = fit(paired, tmp_path / "clipped", gradient_clip=0.01, min_delta=1000.0, patience=1, epochs=3)
    assert len(norms) == 8 and max(norms) <= 0.01 * 1.001
    assert len(history) == 3  # the start, the first epoch, and one that isn't better by 1000
    _, history = fit(paired, tmp_path / "plain", epochs=3, patience=3)
    assert min(norms[8:]) > 0.01
    assert len(history) == 4
