"""Keeping a run's parameters, curves and report in MLflow, TensorBoard or CSV files, by Lightning's loggers.

Tracking decides nothing: what is fitted is the same without it, and a tracker that fails on the way is given up with
a warning. One tracked run goes on where its work goes on: its name is kept beside the work, in `tracking.json`.
"""

import logging
import math
import os
import re
import secrets
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modalloy.encoders.base import sha256_of_settings
from modalloy.errors import ConfigError, one_line
from modalloy.files import read_json, write_json

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

Metrics = Mapping[str, float | int | None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackingConfig:
    """Where the parameters, the curves and the report of a run are kept besides its folder."""

    tracker: Literal["none", "mlflow", "tensorboard", "csv"] = "none"
    """What keeps them; "mlflow" and "tensorboard" need the extra of that name."""
    folder: str | None = None
    """Folder of what is kept; by default `tracking` in the run directory."""
    uri: str | None = None
    """MLflow's tracking URI; by default a SQLite store, `mlflow.db` in the folder."""
    experiment: str = "modalloy"
    """Name of the experiment that the run belongs to."""

    def __post_init__(self) -> None:
        if self.tracker not in ("none", *_BACKENDS):
            raise ConfigError(f"tracker must be one of none, {', '.join(_BACKENDS)}, got {self.tracker!r}.")
        if self.uri is not None and self.tracker != "mlflow":
            raise ConfigError(f"tracking.uri is MLflow's, but the tracker is {self.tracker!r}; set tracking.folder.")
        if not re.fullmatch(r"[\w. -]*\w[\w. -]*", self.experiment):
            raise ConfigError(
                f"tracking.experiment may hold letters, digits, spaces, '.', '_' and '-', got {self.experiment!r}."
            )


class Tracker:
    """One tracked run; made by `tracked`. After its first failure it does nothing more.

    Args:
        backend: what keeps the values; None for nothing.
    """

    def __init__(self, backend: "_Backend | None" = None) -> None:
        self._backend = backend

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Keeps settings, which may be nested."""
        self._attempt(lambda backend: backend.logger("").log_hyperparams(flat(values)))

    def curve(self, name: str, history: Sequence[Metrics]) -> None:
        """Keeps the epochs of a training that aren't kept yet.

        Args:
            name: of the training, within the run.
            history: a dictionary of metrics an epoch, with its number as "epoch".
        """
        self._attempt(lambda backend: backend.curve(name, history))

    def report(self, metrics: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Keeps a run's results, which may be nested, and, in MLflow, the files of its report."""
        self._attempt(lambda backend: backend.report(_numbers(flat(metrics)), files))

    def finish(self, status: Literal["success", "failed"]) -> None:
        """Ends the tracked run."""
        self._attempt(lambda backend: backend.finish(status))

    def _attempt(self, action: Callable[["_Backend"], None]) -> None:
        if self._backend is None:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                action(self._backend)
        except Exception as error:  # each store has errors of its own, and none is worth a training
            self._backend = None
            _log.warning("tracking has failed and stops (%s); the work itself goes on.", one_line(error))


@contextmanager
def tracked(config: TrackingConfig, folder: Path, name: str, parameters: Mapping[str, Any]) -> Iterator[Tracker]:
    """The tracked run of the work in a folder: a new one, or the one that the same work began.

    Args:
        config: see `TrackingConfig`.
        folder: the work's folder, which holds `tracking.json`.
        name: of the run.
        parameters: what decides the work; with others a new tracked run begins.

    Raises:
        ConfigError: the tracker can't start, or isn't installed.
    """
    if config.tracker == "none":
        yield Tracker()
        return
    place = str(Path.cwd() / (config.folder or folder / "tracking"))
    record = {
        "tracker": config.tracker,
        "place": config.uri or place,
        "experiment": config.experiment,
        "parameters": sha256_of_settings(parameters),
    }
    path = folder / "tracking.json"
    before = read_json(path) if path.exists() else {}
    begun = before.get("run") if {**before, "run": None} == {**record, "run": None} else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            backend = _BACKENDS[config.tracker](config, Path(place), name, begun)
            # A logger opens its store at first use; one that can't must stop the work now.
            _ = backend.logger("").experiment  # type: ignore[attr-defined]
            backend.logger("").log_hyperparams(flat(parameters))
    except ImportError:
        raise ConfigError(
            f"tracking by {config.tracker} needs what isn't installed: pip install 'modalloy[{config.tracker}]'."
        ) from None
    except Exception as error:  # each store has errors of its own
        raise ConfigError(
            f"tracking by {config.tracker} can't start at {record['place']} ({one_line(error)}); "
            "mend its folder or uri, or set the tracker to none."
        ) from None
    write_json(path, record | {"run": backend.run})
    tracker = Tracker(backend)
    try:
        yield tracker
    except BaseException:
        tracker.finish("failed")
        raise
    tracker.finish("success")


def flat(values: Any, key: str = "") -> dict[str, Any]:
    """Nested dictionaries and lists as one, by keys like a path, in the letters that every tracker takes.

    >>> flat({"towers": {"heads": 4}, "seeds": [0, 1], "B2 (a/b)": 3})
    {'towers/heads': 4, 'seeds/0': 0, 'seeds/1': 1, 'B2 a_b': 3}
    """
    if isinstance(values, Mapping):
        items = list(values.items())
    elif isinstance(values, list | tuple):
        items = list(enumerate(values))
    else:
        return {key: values}
    found: dict[str, Any] = {}
    for part, value in items:
        name = re.sub(r"[^\w. -]+", "_", re.sub(r"[()]", "", str(part)))
        found |= flat(value, f"{key}/{name}" if key else name)
    return found


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What a chart can show."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


class _Backend(ABC):
    """What keeps a run: one of Lightning's loggers for the run itself, the name "", and perhaps one a training."""

    run: str

    @abstractmethod
    def logger(self, name: str) -> "Logger":
        """The logger of one training, or of the run itself."""

    @abstractmethod
    def curve(self, name: str, history: Sequence[Metrics]) -> None:
        """See `Tracker.curve`."""

    @abstractmethod
    def report(self, metrics: dict[str, float], files: Sequence[Path]) -> None:
        """See `Tracker.report`."""

    @abstractmethod
    def finish(self, status: str) -> None:
        """See `Tracker.finish`."""


class _MLflow(_Backend):
    """A run of an MLflow store; the curves of a training have its name before theirs."""

    def __init__(self, config: TrackingConfig, place: Path, name: str, begun: str | None) -> None:
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

    def report(self, metrics: dict[str, float], files: Sequence[Path]) -> None:
        self._logger.log_metrics(metrics)
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


class _Files(_Backend):
    """A folder a run, with a folder a training."""

    def __init__(self, config: TrackingConfig, place: Path, name: str, begun: str | None) -> None:
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

    def report(self, metrics: dict[str, float], files: Sequence[Path]) -> None:
        self.logger("").log_metrics(metrics, step=0)

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


_BACKENDS: dict[str, Callable[[TrackingConfig, Path, str, str | None], _Backend]] = {
    "mlflow": _MLflow,
    "tensorboard": _TensorBoard,
    "csv": _CSV,
}
