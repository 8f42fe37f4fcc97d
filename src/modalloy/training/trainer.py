"""The one way modalloy trains: a quiet Lightning trainer that can be killed at any moment and goes on.

Every epoch ends with a checkpoint and a line in `metrics.jsonl`, both written atomically. All that an epoch
draws comes from (seed, epoch), so on a CPU a resumed training ends with the weights of an uninterrupted one.
"""

import logging
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
from rich.progress import Progress, TaskID
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from modalloy.errors import ConfigError
from modalloy.files import remove_partial_files
from modalloy.progress import progress_bar
from modalloy.training.batches import seed_epoch
from modalloy.training.early_stopping import EarlyStopping, Metrics
from modalloy.training.epoch_record import AtomicCheckpointIO, EpochRecord, remove_others
from modalloy.training.processes import Environment, followers, strategy
from modalloy.training.tracking import Tracker

_PRECISIONS: dict[str, Literal["32-true", "bf16-mixed"]] = {"fp32": "32-true", "bf16": "bf16-mixed"}


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
    before: Sequence[Metrics] = (),
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
        before: the metrics of the epochs that were trained before in another way: the first one here is the next, and
            `epochs` counts them.

    Returns:
        One dictionary of metrics an epoch, those of `metrics.jsonl`.

    Raises:
        ConfigError: `early_stopping` would have to choose among epochs `before`, whose weights are elsewhere.
        CheckpointError: the checkpoint to go on from is damaged.
        KeyboardInterrupt: the user pressed Ctrl-C; the epochs done so far are kept.
    """
    if before and early_stopping is not None:
        raise ConfigError("early stopping can't go back to the epochs before; leave it out.")
    checkpoints = Path(folder) / "checkpoints"
    name = fingerprint[:16]
    record = EpochRecord(Path(folder) / "metrics.jsonl", checkpoints, name, early_stopping, before)
    remove_partial_files(folder)
    remove_others(checkpoints, name)
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
    record: EpochRecord,
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
        plugins=[AtomicCheckpointIO()],
        default_root_dir=plan.folder,
        logger=False,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    done: Any = trainer.fit_loop.epoch_progress
    for progress in (done.current, done.total):
        progress.ready = progress.started = progress.processed = progress.completed = len(record.history)
    last = record.last if record.last.exists() else None
    trainer.fit(module, batches, validation, ckpt_path=last, weights_only=True)


def _follow(
    environment: Environment,
    plan: _Plan,
    record: EpochRecord,
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


class _Tracking(Checkpoint):
    """Hands the metrics to a tracker, which keeps what it lacks of them, so that no epoch is lost or kept twice."""

    def __init__(self, record: EpochRecord, tracker: Tracker, curve: str) -> None:
        self._record = record
        self._tracker = tracker
        self._curve = curve

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tracker.curve(self._curve, self._record.history)


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
