"""What a tracked run is kept in: an MLflow store, or files of TensorBoard or CSV, by Lightning's loggers."""

import logging
import math
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from modalloy.training.tracking import TrackingConfig

Metrics = Mapping[str, float | int | None]


class Store(ABC):
    """What keeps a run: one of Lightning's loggers for the run itself, the name "", and perhaps one a training."""

    run: str

    @abstractmethod
    def logger(self, name: str) -> "Logger":
        """The logger of one training, or of the run itself."""

    @abstractmethod
    def curve(self, name: str, history: Sequence[Metrics]) -> None:
        """See `Tracker.curve`."""

    @abstractmethod
    def report(self, metrics: dict[str, Any], files: Sequence[Path]) -> None:
        """See `Tracker.report`."""

    @abstractmethod
    def finish(self, status: str) -> None:
        """See `Tracker.finish`."""


class _MLflow(Store):
    """A run of an MLflow store; the curves of a training have its name before theirs."""

    def __init__(self, config: "TrackingConfig", place: Path, name: str, begun: str | None) -> None:
        # It would send usage statistics over the network.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from lightning.pytorch.loggers import MLFlowLogger
        from mlflow import MlflowClient

        # They announce each table that they make.
        for library in ("mlflow", "alembic"):
            logging.getLogger(library).setLevel(logging.WARNING)
        uri, artifacts = config.uri, None
        if uri is None:
            place.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{place / 'mlflow.db'}", (place / "artifacts").as_uri()
        client = MlflowClient(uri)
        # Made here since the logger warns of it.
        if client.get_experiment_by_name(config.experiment) is None:
            client.create_experiment(config.experiment, artifact_location=artifacts)
        self._logger = MLFlowLogger(
            config.experiment, run_name=name, tracking_uri=uri, run_id=_if_there(client, begun), log_model=False
        )
        self.run = str(self._logger.run_id)
        client.update_run(self.run, status="RUNNING")

    def logger(self, name: str) -> "Logger":
        return self._logger

    def curve(self, name: str, history: Sequence[Metrics]) -> None:
        kept = {point.step for point in self._logger.experiment.get_metric_history(self.run, f"{name}/epoch")}
        for row in history:
            if row["epoch"] not in kept:
                values = {f"{name}/{key}": value for key, value in row.items()}
                self._logger.log_metrics(_numbers(values), step=int(row["epoch"] or 0))

    def report(self, metrics: dict[str, Any], files: Sequence[Path]) -> None:
        self._logger.log_metrics(_numbers(metrics))
        for path in files:
            self._logger.experiment.log_artifact(self.run, str(path))

    def finish(self, status: str) -> None:
        self._logger.finalize(status)


def _if_there(client: Any, run: str | None) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return run and client.get_run(run).info.run_id
    except MlflowException:
        return None


class _Files(Store):
    """A folder a run, with a folder a training."""

    def __init__(self, config: "TrackingConfig", place: Path, name: str, begun: str | None) -> None:
        self.run = begun or f"{name}-{secrets.token_hex(4)}"
        self._place, self._experiment = place, config.experiment
        self._loggers: dict[str, Logger] = {}
        self._kept: dict[str, set[float | int | None]] = {}

    def logger(self, name: str) -> "Logger":
        if name not in self._loggers:
            self._loggers[name] = self._new(str(self._place), self._experiment, f"{self.run}/{name}".rstrip("/"))
        return self._loggers[name]

    @abstractmethod
    def _new(self, place: str, experiment: str, version: str) -> "Logger":
        """A logger that writes to place/experiment/version."""

    def curve(self, name: str, history: Sequence[Metrics]) -> None:
        # A new logger begins its files anew: it is given all that there is.
        kept = self._kept.setdefault(name, set())
        for row in history:
            if row["epoch"] not in kept:
                self.logger(name).log_metrics(_numbers(row), step=int(row["epoch"] or 0))
                kept.add(row["epoch"])
        self.logger(name).save()

    def report(self, metrics: dict[str, Any], files: Sequence[Path]) -> None:
        self.logger("").log_metrics(_numbers(metrics), step=0)

    def finish(self, status: str) -> None:
        for logger in self._loggers.values():
            logger.finalize(status)


class _TensorBoard(_Files):
    def _new(self, place: str, experiment: str, version: str) -> "Logger":
        from lightning.pytorch.loggers import TensorBoardLogger

        # Points from step 0 on that an earlier process wrote are to be forgotten.
        return TensorBoardLogger(place, experiment, version, default_hp_metric=False, purge_step=0)


class _CSV(_Files):
    def _new(self, place: str, experiment: str, version: str) -> "Logger":
        from lightning.pytorch.loggers import CSVLogger

        return CSVLogger(place, experiment, version, flush_logs_every_n_steps=1)


STORES: dict[str, Callable[["TrackingConfig", Path, str, str | None], Store]] = {
    "mlflow": _MLflow,
    "tensorboard": _TensorBoard,
    "csv": _CSV,
}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What a chart can show."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
