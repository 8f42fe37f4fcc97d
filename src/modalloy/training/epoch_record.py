"""What a training leaves behind at each epoch's end, so that it can be killed at any moment and goes on."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from modalloy.errors import CheckpointError
from modalloy.files import atomic_path, remove_partial_files, write_text
from modalloy.training.early_stopping import EarlyStopping, Metrics


class EpochRecord(Checkpoint):
    """At each epoch's end: the line of metrics, the checkpoint, and whether to stop.

    A subclass of Lightning's `Checkpoint`, so that it runs after the module's own `on_train_epoch_end`. The
    history is part of the checkpoint, so metrics and weights can't get out of step. It begins with the epochs that
    went before this training.
    """

    def __init__(
        self,
        metrics: Path,
        checkpoints: Path,
        name: str,
        early_stopping: EarlyStopping | None,
        before: Sequence[Metrics] = (),
    ) -> None:
        self.history: list[Metrics] = list(before)
        self.last = checkpoints / f"{name}.ckpt"
        self._best = checkpoints / f"{name}-best.ckpt"
        self._metrics = metrics
        self._early_stopping = early_stopping

    @property
    def state_key(self) -> str:
        # What checkpoints call it, by the class's first name, so that trainings that were begun then go on.
        return "_EpochRecord"

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


class AtomicCheckpointIO(TorchCheckpointIO):
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


def remove_others(checkpoints: Path, name: str) -> None:
    """Removes the checkpoints of trainings of another name."""
    if checkpoints.is_dir():
        remove_partial_files(checkpoints)
        for path in checkpoints.glob("*.ckpt"):
            if path.name not in (f"{name}.ckpt", f"{name}-best.ckpt"):
                path.unlink()
