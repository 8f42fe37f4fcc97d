"""The one way modalloy trains: a quiet Lightning trainer that can be killed at any moment and goes on.

Every epoch ends with a checkpoint and a line in `metrics.jsonl`, both written atomically. All that an epoch
draws comes from (seed, epoch), so on a CPU a resumed training ends with the weights of an uninterrupted one.
"""

import json
import logging
import math
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.progress import Progress, TaskID
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from modalloy.errors import CheckpointError, ConfigError
from modalloy.files import atomic_path, remove_partial_files, write_text
from modalloy.progress import progress_bar
from modalloy.training.batches import seed_epoch
from modalloy.training.processes import Environment, followers, strategy
from modalloy.training.tracking import Tracker

Metrics = dict[str, float | int | None]
_PRECISIONS: dict[str, Literal["32-true", "bf16-mixed"]] = {"fp32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class EarlyStopping:
    """When to stop before the last epoch; the weights of the best epoch are the result."""

    monitor: str
    """Name of the logged metric that decides."""
    patience: int
    """Epochs without a better value after which training stops."""
    mode: Literal["max", "min"] = "max"
    """Whether larger or smaller is better."""
    min_delta: float = 0.0
    """By how much a value must be better to count."""

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ConfigError(f"patience must be at least 1 epoch, got {self.patience}.")
        if self.mode not in ("max", "min"):
            raise ConfigError(f"mode must be 'max' or 'min', got {self.mode!r}.")

    def best(self, history: list[Metrics]) -> int:
        """Index of the best epoch in `history` (the first of equals)."""
        sign = 1 if self.mode == "max" else -1
        best, best_value = 0, -math.inf
        for index, row in enumerate(history):
            if self.monitor not in row:
                raise ConfigError(f"Early stopping watches {self.monitor!r}, which isn't among {sorted(row)}.")
            value = row[self.monitor]
            if value is not None and sign * value > best_value + self.min_delta:
                best, best_value = index, sign * value
        return best

    def over(self, history: list[Metrics]) -> bool:
        """Whether `patience` epochs have gone by without a better value."""
        return bool(history) and len(history) - 1 - self.best(history) >= self.patience


def fit(
    module: LightningModule,
    batches: DataLoader,
    folder: str | Path,
    *,
    epochs: int,
    seed: int,
    description: str,
    fingerprint: str,
    validation: DataLoader | None = None,
    early_stopping: EarlyStopping | None = None,
    gradient_clip: float | None = None,
    accumulate: int = 1,
    precision: Literal["fp32", "bf16"] = "fp32",
    accelerator: str = "auto",
    devices: int = 1,
    tracker: Tracker | None = None,
    curve: str = "",
) -> list[Metrics]:
    """Trains `module` in place, going on from the last checkpoint of the same `fingerprint` in `folder`.

    torch's global random numbers are seeded at each epoch's start and given back as they were. A
    learning-rate schedule must move per step (`schedules.per_step`). All that the module logs per epoch ends
    in `metrics.jsonl`, one line an epoch.

    Arguments:
        module: logs with `self.log(..., on_epoch=True, batch_size=...)`; validates if `validation` is given.
        batches: the training batches, from `batches.pair_loader`.
        folder: holds `checkpoints/` and `metrics.jsonl`.
        epochs: how many epochs, at most.
        seed: decides, with the epoch, all that is drawn.
        description: stands before the progress bar.
        fingerprint: SHA-256 of everything that decides the result (configuration, features); checkpoints with
            another one can't be continued and are removed.
        validation: batches for the module's `validation_step`, run after each epoch.
        early_stopping: when to stop before `epochs`; by default never.
        gradient_clip: largest norm of the gradient; by default unlimited.
        accumulate: batches whose mean gradient makes one step of the optimiser.
        precision: what the module's step computes in; with "bf16" by autocast, the weights stay in fp32.
        accelerator: as Lightning names it: "auto", "cpu", "gpu".
        devices: how many processes of this machine train together, each on a device of its own, by DDP; the module
            gathers what its loss needs by `processes.gathered`.
        tracker: also keeps each epoch's metrics.
        curve: the training's name there.

    Returns:
        One dictionary of metrics an epoch, those of `metrics.jsonl`.

    Raises:
        CheckpointError: the checkpoint to go on from is damaged.
        KeyboardInterrupt: the user pressed Ctrl-C; the epochs done so far are kept.
    """
    checkpoints = Path(folder) / "checkpoints"
    name = fingerprint[:16]
    record = _EpochRecord(Path(folder) / "metrics.jsonl", checkpoints, name, early_stopping)
    _remove_others(checkpoints, name)
    plan = _Plan(str(folder), epochs, seed, gradient_clip, accumulate, precision, accelerator, devices)
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(torch.random.fork_rng())
        environment = None
        if devices > 1:
            environment = stack.enter_context(followers(devices, _follow, plan, record, module, batches, validation))
        shown: list[Callback] = [_FitProgress(stack.enter_context(progress_bar()), description)]
        if tracker is not None:
            shown.append(_Tracking(record, tracker, curve))
        with _keyboard_interrupt_passed_on():
            _train(plan, record, module, batches, validation, environment, shown)
        if tracker is not None:
            # Where no epoch was left to do, none was handed over.
            tracker.curve(curve, record.history)
        record.load_best(module)
    return record.history


@dataclass(frozen=True)
class _Plan:
    """What `fit` was asked for, for every process."""

    folder: str
    epochs: int
    seed: int
    gradient_clip: float | None
    accumulate: int
    precision: Literal["fp32", "bf16"]
    accelerator: str
    devices: int


def _train(
    plan: _Plan,
    record: "_EpochRecord",
    module: LightningModule,
    batches: DataLoader,
    validation: DataLoader | None,
    environment: Environment | None,
    shown: Sequence[Callback],
) -> None:
    trainer = Trainer(
        accelerator=plan.accelerator,
        devices=plan.devices,
        strategy="auto" if environment is None else strategy(environment),
        max_epochs=plan.epochs,
        gradient_clip_val=plan.gradient_clip,
        accumulate_grad_batches=plan.accumulate,
        precision=_PRECISIONS[plan.precision],
        callbacks=[_SeededEpochs(plan.seed), _MeanGradient(), record, *shown],
        plugins=[_AtomicCheckpointIO()],
        default_root_dir=plan.folder,
        logger=False,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    last = record.last if record.last.exists() else None
    trainer.fit(module, batches, validation, ckpt_path=last, weights_only=True)


def _follow(
    environment: Environment,
    plan: _Plan,
    record: "_EpochRecord",
    module: LightningModule,
    batches: DataLoader,
    validation: DataLoader | None,
) -> None:
    """What the processes besides the first do of a training."""
    with _quiet():
        _train(plan, record, module, batches, validation, environment, shown=())


class _SeededEpochs(Callback):
    """Seeds torch's random numbers at the start of each epoch."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seed_epoch(self._seed, trainer.current_epoch, trainer.global_rank)


class _MeanGradient(Callback):
    """Makes the gradient of an epoch's last step a mean, too, where fewer batches than the others' are left for it."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        left = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches
        if left:
            for parameter in pl_module.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(trainer.accumulate_grad_batches / left)


class _FitProgress(Callback):
    """One progress bar over all steps of all epochs."""

    def __init__(self, progress: Progress, description: str) -> None:
        self._progress = progress
        self._description = description
        self._task: TaskID | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = int(trainer.num_training_batches)
        self._task = self._progress.add_task(
            self._description,
            total=steps * (trainer.max_epochs or 0),
            completed=steps * trainer.current_epoch,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._task is not None
        self._progress.advance(self._task)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._task is not None
        task = self._progress.tasks[self._task]
        if not task.finished and trainer.current_epoch < (trainer.max_epochs or 0):
            # A bar that stays at a half would look aborted.
            self._progress.update(self._task, description=f"{self._description} (stopped early)", total=task.completed)


class _EpochRecord(Checkpoint):
    """At each epoch's end: the line of metrics, the checkpoint, and whether to stop.

    A subclass of Lightning's `Checkpoint`, so that it runs after the module's own `on_train_epoch_end`. The
    history is part of the checkpoint, so metrics and weights can't get out of step.
    """

    def __init__(self, metrics: Path, checkpoints: Path, name: str, early_stopping: EarlyStopping | None) -> None:
        self.history: list[Metrics] = []
        self.last = checkpoints / f"{name}.ckpt"
        self._best = checkpoints / f"{name}-best.ckpt"
        self._metrics = metrics
        self._early_stopping = early_stopping

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history[:] = state_dict["history"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_over(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row: Metrics = {"epoch": trainer.current_epoch + 1}
        for name, value in sorted(trainer.callback_metrics.items()):
            number = float(value)
            row[name] = number if math.isfinite(number) else None
        self.history.append(row)
        # Best weights first, the resumable checkpoint last: killed in between, the epoch is done again.
        stopping = self._early_stopping
        if stopping is not None and stopping.best(self.history) == len(self.history) - 1:
            trainer.save_checkpoint(self._best, weights_only=True)
        if trainer.is_global_zero:
            write_text(self._metrics, "".join(json.dumps(row) + "\n" for row in self.history))
        trainer.save_checkpoint(self.last, weights_only=False)
        self._stop_if_over(trainer)

    def load_best(self, module: LightningModule) -> None:
        """Gives `module` the weights of the best epoch, where there is early stopping."""
        if self._early_stopping is not None:
            module.load_state_dict(_load(self._best, "cpu")["state_dict"])

    def _stop_if_over(self, trainer: Trainer) -> None:
        if self._early_stopping is not None and self._early_stopping.over(self.history):
            trainer.should_stop = True


class _Tracking(Checkpoint):
    """Hands the metrics to a tracker, which keeps what it lacks of them, so that no epoch is lost or kept twice."""

    def __init__(self, record: _EpochRecord, tracker: Tracker, curve: str) -> None:
        self._record = record
        self._tracker = tracker
        self._curve = curve

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tracker.curve(self._curve, self._record.history)


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints by `atomic_path` and reads nothing but tensors and plain values."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return _load(path, map_location)


def _load(path: str | Path, map_location: Any) -> dict[str, Any]:
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch.load raises nearly anything for a damaged file
        raise CheckpointError(
            f"{path} can't be read as a training checkpoint ({type(error).__name__}); it may be damaged: "
            "delete it, and training starts anew."
        ) from error


def _remove_others(checkpoints: Path, name: str) -> None:
    if checkpoints.is_dir():
        remove_partial_files(checkpoints)
        for path in checkpoints.glob("*.ckpt"):
            if path.name not in (f"{name}.ckpt", f"{name}-best.ckpt"):
                path.unlink()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what Lightning says about devices, workers and folders; errors still get through."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _keyboard_interrupt_passed_on() -> Iterator[None]:
    """Lightning turns Ctrl-C into SystemExit(1) and leaves SIGINT ignored; this undoes both."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
