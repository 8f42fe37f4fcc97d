import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from modalloy.errors import CheckpointError, ConfigError
from modalloy.training.batches import PairSampler, pair_loader
from modalloy.training.early_stopping import EarlyStopping
from modalloy.training.schedules import cosine, per_step
from modalloy.training.trainer import fit

FINGERPRINT = "a" * 64


class Rows:
    def __getitem__(self, rows):
        return torch.nn.functional.one_hot(rows.captions, 12).float()


def batches() -> DataLoader:
    return pair_loader(Rows(), PairSampler(torch.arange(12) // 2, batch_size=4, seed=3))


class Tiny(LightningModule):
    """Dropout, a step schedule and Adam: everything whose state a resumed training must restore."""

    def __init__(self, die_at: tuple[int, int] | None = None, scores: list[float] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.die_at = die_at
        self.scores = scores
        self.validated = 0

    def training_step(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == self.die_at:
            raise KeyboardInterrupt
        loss = self.layers(batch).square().mean()
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch, batch_idx):
        if self.scores is not None:
            self.log("score", self.scores[self.current_epoch], batch_size=1)
        self.validated += 1

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        steps = int(self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": per_step(cosine(optimizer, steps))}


def train(module: Tiny, folder: Path, **options):
    arguments = dict(epochs=4, seed=1, description="tiny", fingerprint=FINGERPRINT, accelerator="cpu")
    return fit(module, options.pop("batches", None) or batches(), folder, **(arguments | options))


def weights(module: nn.Module) -> list[float]:
    return torch.cat([parameter.flatten() for parameter in module.parameters()]).tolist()


@pytest.mark.parametrize("moment", [(0, 1), (1, 0), (3, 1)])
def test_an_interrupted_training_goes_on_and_ends_the_same(tmp_path, moment):
    whole = Tiny()
    history = train(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(Tiny(die_at=moment), tmp_path / "killed")
    resumed = Tiny()
    assert train(resumed, tmp_path / "killed") == history
    assert weights(resumed) == weights(whole)
    assert (tmp_path / "killed/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


class Plain(Tiny):
    """An optimiser without a state, so that it makes no difference where it starts anew."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_epochs_go_on_after_others_that_were_trained_before(tmp_path):
    whole, parts = Plain(), Plain()
    history = train(whole, tmp_path / "whole")
    before = train(parts, tmp_path / "first", epochs=2)
    with pytest.raises(KeyboardInterrupt):
        killed = Plain(die_at=(3, 1))
        killed.load_state_dict(parts.state_dict())
        train(killed, tmp_path / "second", before=before)
    assert train(parts, tmp_path / "second", before=before) == history
    assert weights(parts) == weights(whole)
    assert (tmp_path / "second/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match="epochs before"):
        train(parts, tmp_path / "third", before=before, early_stopping=EarlyStopping("score", 1))


def test_metrics_are_written_a_line_an_epoch(tmp_path):
    history = train(Tiny(scores=[1.0, math.nan, 3.0, 4.0]), tmp_path, validation=DataLoader([0]))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == history
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert [line["score"] for line in lines] == [1.0, None, 3.0, 4.0]
    assert all(line["loss"] >= 0 for line in lines)


def test_the_random_numbers_of_the_caller_are_left_alone_and_seeds_count(tmp_path):
    torch.manual_seed(9)
    expected = torch.rand(3)
    one = Tiny()
    torch.manual_seed(9)
    train(one, tmp_path / "one")
    assert torch.equal(torch.rand(3), expected)
    other = Tiny()
    train(other, tmp_path / "other", seed=2)
    assert weights(one) != weights(other)


def test_a_finished_training_is_restored_without_a_step(tmp_path):
    first = Tiny()
    history = train(first, tmp_path)
    again = Tiny(die_at=(0, 0))
    assert train(again, tmp_path) == history
    assert weights(again) == weights(first)


def test_what_a_killed_training_was_writing_is_removed(tmp_path):
    (tmp_path / ".partial-0-metrics.jsonl").write_text("{")
    train(Tiny(), tmp_path)
    assert not list(tmp_path.glob("**/.partial-*")) and (tmp_path / "metrics.jsonl").exists()


def test_checkpoints_of_another_fingerprint_are_not_continued(tmp_path):
    train(Tiny(), tmp_path, epochs=2)
    fresh, expected = Tiny(), Tiny()
    assert len(train(fresh, tmp_path, fingerprint="b" * 64)) == 4
    train(expected, tmp_path / "elsewhere")
    assert weights(fresh) == weights(expected)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["b" * 16 + ".ckpt"]


def test_early_stopping_gives_the_best_epochs_weights(tmp_path, capfd):
    stopping = EarlyStopping("score", patience=2)
    module = Tiny(scores=[1.0, 5.0, 4.0, 5.0, 9.0, 9.0])
    options = dict(epochs=6, early_stopping=stopping, validation=DataLoader([0]))
    history = train(module, tmp_path, **options)
    assert [row["score"] for row in history] == [1.0, 5.0, 4.0, 5.0]
    reference = Tiny(die_at=(2, 0))
    with pytest.raises(KeyboardInterrupt):
        train(reference, tmp_path / "reference", epochs=6)
    assert weights(module) == weights(reference)
    assert "(stopped early)" in capfd.readouterr().err
    again = Tiny(scores=[0.0] * 6)
    assert train(again, tmp_path, **options) == history
    assert again.validated == 0
    assert weights(again) == weights(module)


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [("max", [1, 3, 3, 2], 1), ("min", [4, 2, 5, 2], 1), ("max", [None, None], 0), ("min", [None, 7], 1)],
)
def test_best_epoch(mode, values, best):
    history = [{"score": value} for value in values]
    assert EarlyStopping("score", patience=1, mode=mode).best(history) == best


def test_a_small_gain_does_not_count_where_min_delta_says_so():
    stopping = EarlyStopping("score", patience=2, min_delta=1.0)
    history = [{"score": value} for value in [5.0, 5.5, 6.0]]
    assert stopping.best(history) == 0
    assert stopping.over(history)


def test_bad_early_stopping_is_refused():
    with pytest.raises(ConfigError, match="patience"):
        EarlyStopping("score", patience=0)
    stopping = EarlyStopping("score", patience=1)
    object.__setattr__(stopping, "mode", "best")  # past the type checks that only the tests have
    with pytest.raises(ConfigError, match="'max' or 'min'"):
        stopping.__post_init__()
    with pytest.raises(ConfigError, match=r"'recall'.*loss"):
        EarlyStopping("recall", patience=1).best([{"loss": 1.0}])


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    train(Tiny(), tmp_path, epochs=1)
    (path,) = (tmp_path / "checkpoints").iterdir()
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(CheckpointError, match=path.name):
        train(Tiny(), tmp_path)


def test_nothing_but_the_progress_bar_is_printed(tmp_path, capfd):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train(Tiny(), tmp_path, validation=DataLoader([0]))
    output = capfd.readouterr()
    assert seen == []
    assert output.out == ""
    assert len(output.err.strip().splitlines()) == 1
    assert "tiny" in output.err and "8/8" in output.err


def test_an_error_in_the_module_gets_through(tmp_path):
    class Broken(Tiny):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("the step failed")

    with pytest.raises(RuntimeError, match="the step failed"):
        train(Broken(), tmp_path)


def test_accumulated_gradients_are_means_also_in_an_epochs_last_step(tmp_path):
    """Three batches an epoch, two a step: the second step of an epoch is of one batch alone."""

    class Plain(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(12, 1)

        def training_step(self, batch, batch_idx):
            return self.layer(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.5)

    def loader():
        return pair_loader(Rows(), PairSampler(torch.arange(12) // 2, batch_size=2, seed=3))

    for clip in (None, 1e-3):
        ours, reference = Plain(), Plain()
        train(ours, tmp_path / str(clip), epochs=2, accumulate=2, gradient_clip=clip, batches=loader())
        sampler = loader().sampler
        optimizer = reference.configure_optimizers()
        for epoch in range(2):
            sampler.set_epoch(epoch)
            drawn = [Rows()[rows] for rows in sampler]
            assert len(drawn) == 3
            for group in (drawn[:2], drawn[2:]):
                optimizer.zero_grad()
                torch.stack([reference.training_step(batch, 0) for batch in group]).mean().backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(reference.parameters(), clip)
                optimizer.step()
        assert weights(ours) == pytest.approx(weights(reference), rel=1e-5, abs=1e-7)


def test_bf16_leaves_the_weights_in_fp32(tmp_path):
    class Watching(Tiny):
        def training_step(self, batch, batch_idx):
            self.seen = self.layers(batch).dtype
            return super().training_step(batch, batch_idx)

    module = Watching()
    train(module, tmp_path, epochs=1, precision="bf16")
    assert module.seen == torch.bfloat16
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
