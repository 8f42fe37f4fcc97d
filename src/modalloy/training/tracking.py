"""Keeping a run's parameters, curves and report in MLflow, TensorBoard or CSV files, by Lightning's loggers.

Tracking decides nothing: what is fitted is the same without it, and a tracker that fails on the way is given up with
a warning. One tracked run goes on where its work goes on: its name is kept beside the work, in `tracking.json`.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modalloy.encoders.base import sha256_of_settings
from modalloy.errors import ConfigError, one_line
from modalloy.files import read_json, write_json
from modalloy.training.tracking_stores import STORES, Metrics, Store

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
        if self.tracker not in ("none", *STORES):
            raise ConfigError(f"tracker must be one of none, {', '.join(STORES)}, got {self.tracker!r}.")
        if self.uri is not None and self.tracker != "mlflow":
            raise ConfigError(f"tracking.uri is MLflow's, but the tracker is {self.tracker!r}; set tracking.folder.")
        if not re.fullmatch(r"[\w. -]*\w[\w. -]*", self.experiment):
            raise ConfigError(
                f"tracking.experiment may hold letters, digits, spaces, '.', '_' and '-', got {self.experiment!r}."
            )


class Tracker:
    """One tracked run; made by `tracked`. After its first failure it does nothing more.

    Args:
        store: what keeps the values; None for nothing.
    """

    def __init__(self, store: Store | None = None) -> None:
        self._store = store

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Keeps settings, which may be nested."""
        self._attempt(lambda store: store.logger("").log_hyperparams(flat(values)))

    def curve(self, name: str, history: Sequence[Metrics]) -> None:
        """Keeps the epochs of a training that aren't kept yet.

        Args:
            name: of the training, within the run.
            history: a dictionary of metrics an epoch, with its number as "epoch".
        """
        self._attempt(lambda store: store.curve(name, history))

    def report(self, metrics: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Keeps a run's results, which may be nested, and, in MLflow, the files of its report."""
        self._attempt(lambda store: store.report(flat(metrics), files))

    def finish(self, status: Literal["success", "failed"]) -> None:
        """Ends the tracked run."""
        self._attempt(lambda store: store.finish(status))

    def _attempt(self, action: Callable[[Store], None]) -> None:
        if self._store is None:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                action(self._store)
        except Exception as error:  # each store has errors of its own, and none is worth a training
            self._store = None
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
            store = STORES[config.tracker](config, Path(place), name, begun)
            # A logger opens its store at first use; one that can't must stop the work now.
            _ = store.logger("").experiment  # type: ignore[attr-defined]
            store.logger("").log_hyperparams(flat(parameters))
    except ImportError:
        raise ConfigError(
            f"tracking by {config.tracker} needs what isn't installed: pip install 'modalloy[{config.tracker}]'."
        ) from None
    except Exception as error:  # each store has errors of its own
        raise ConfigError(
            f"tracking by {config.tracker} can't start at {record['place']} ({one_line(error)}); "
            "mend its folder or uri, or set the tracker to none."
        ) from None
    write_json(path, record | {"run": store.run})
    tracker = Tracker(store)
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
