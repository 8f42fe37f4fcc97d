"""What is tracked is read back by each tracker's own reader."""

import csv
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from modalloy.errors import ConfigError
from modalloy.files import read_json, write_json
from modalloy.training.tracking import Tracker, TrackingConfig, flat, tracked

# MLflow uses what SQLAlchemy will drop.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PARAMETERS = {"fusion": {"towers": {"heads": 4, "output_dim": None}, "seeds": [0, 1]}, "name": "x" * 400}
CURVE = "hada-stage-1/seed-0"
HISTORY = [{"epoch": epoch, "loss": 1.0 / epoch, "rsum": None if epoch == 2 else 50.0 * epoch} for epoch in (1, 2, 3)]
REPORT = {"systems": {"B2 (concat-linear)": {"rsum": 266.5}}, "text": "no number", "whole": True, "nan": float("nan")}
TRACKERS = ("mlflow", "tensorboard", "csv")


def track(folder: Path, config: TrackingConfig, epochs: range, *, finish: bool = True) -> None:
    """The work of one process: the given epochs of a training, and then perhaps the report."""
    with tracked(config, folder, "run", PARAMETERS) as tracker:
        for epoch in epochs:
            tracker.curve(CURVE, HISTORY[:epoch])
        if not finish:
            raise KeyboardInterrupt
        tracker.parameters({"fingerprints": {"collection": "c" * 64}})
        tracker.report(REPORT, [folder / "report.html"])


@pytest.fixture(params=TRACKERS)
def config(request) -> TrackingConfig:
    return TrackingConfig(request.param)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """A SQLite store whose tables are made, which takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def folder(tmp_path, empty_store) -> Path:
    (tmp_path / "report.html").write_text("<html>")
    (tmp_path / "tracking").mkdir()
    shutil.copy(empty_store, tmp_path / "tracking")
    return tmp_path


def read_back(
    folder: Path, tracker: str
) -> tuple[dict[str, str], dict[str, list[tuple[int, float]]], dict[str, float]]:
    """The parameters, the curves and the report of the only tracked run."""
    return {"mlflow": from_mlflow, "tensorboard": from_tensorboard, "csv": from_csv}[tracker](folder / "tracking")


def only_run(place: Path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("modalloy").experiment_id])
    return client, run


def from_mlflow(place):
    client, run = only_run(place)
    points = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    curves = {
        name.removeprefix(f"{CURVE}/"): sorted((point.step, point.value) for point in each)
        for name, each in points.items()
        if name.startswith(CURVE)
    }
    return run.data.params, curves, {k: v for k, v in run.data.metrics.items() if not k.startswith(CURVE)}


def from_tensorboard(place):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = (place / "modalloy").iterdir()

    def scalars(folder):
        events = EventAccumulator(str(folder)).Reload()
        return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}

    report = {name: value for name, ((_, value),) in scalars(run).items()}
    return yaml.safe_load((run / "hparams.yaml").read_text()), scalars(run / CURVE), report


def from_csv(place):
    (run,) = (place / "modalloy").iterdir()

    def rows(folder):
        with (folder / "metrics.csv").open() as file:
            return list(csv.DictReader(file))

    curves: dict = {}
    for row in rows(run / CURVE):
        for name, value in row.items():
            if value and name != "step":
                curves.setdefault(name, []).append((int(row["step"]), float(value)))
    report = {name: float(value) for row in rows(run) for name, value in row.items() if name != "step"}
    return yaml.safe_load((run / "hparams.yaml").read_text()), curves, report


def assert_all_is_there(folder: Path, tracker: str) -> None:
    parameters, curves, report = read_back(folder, tracker)
    assert str(parameters["fusion/towers/heads"]) == "4" and str(parameters["fusion/seeds/1"]) == "1"
    assert parameters["fingerprints/collection"] == "c" * 64
    assert [step for step, _ in curves["loss"]] == [1, 2, 3]
    assert [value for _, value in curves["loss"]] == pytest.approx([1.0, 0.5, 1 / 3])
    assert curves["rsum"] == [(1, 50.0), (3, 150.0)]
    assert report == {"systems/B2 concat-linear/rsum": 266.5}


def test_parameters_curves_and_report_are_kept(folder, config):
    track(folder, config, range(1, 4))
    assert_all_is_there(folder, config.tracker)


@pytest.mark.parametrize("again", [1, 2, 3])
def test_an_interrupted_run_goes_on_in_the_same_tracked_run(folder, config, again):
    """The epoch before the interruption may be done again, and one may have come to the record alone."""
    with pytest.raises(KeyboardInterrupt):
        track(folder, config, range(1, 3), finish=False)
    track(folder, config, range(again, 4) if again < 3 else range(3, 4))
    assert_all_is_there(folder, config.tracker)


def test_epochs_that_are_given_again_are_kept_once(folder, config):
    with tracked(config, folder, "run", PARAMETERS) as tracker:
        for epochs in (1, 3, 3):
            tracker.curve(CURVE, HISTORY[:epochs])
        tracker.parameters({"fingerprints": {"collection": "c" * 64}})
        tracker.report(REPORT, [])
    assert_all_is_there(folder, config.tracker)


def test_mlflow_keeps_the_report_itself_and_how_the_run_ended(folder):
    config = TrackingConfig("mlflow")
    with pytest.raises(KeyboardInterrupt):
        track(folder, config, range(1, 3), finish=False)
    assert only_run(folder / "tracking")[1].info.status == "FAILED"
    track(folder, config, range(3, 4))
    client, run = only_run(folder / "tracking")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["report.html"]
    assert (folder / "tracking/artifacts" / run.info.run_id / "artifacts/report.html").read_text() == "<html>"


def test_other_parameters_or_a_lost_run_begin_a_new_one(folder):
    config = TrackingConfig("mlflow", uri=f"sqlite:///{folder / 'tracking' / 'mlflow.db'}", experiment="own")
    record, runs = folder / "tracking.json", []
    for parameters in ({"a": 1}, {"a": 1}, {"a": 2}):
        with tracked(config, folder, "run", parameters):
            runs.append(read_json(record)["run"])
    assert runs[0] == runs[1] != runs[2]
    write_json(record, read_json(record) | {"run": "0" * 32})
    with tracked(config, folder, "run", {"a": 2}):
        assert read_json(record)["run"] not in ("0" * 32, *runs)


def test_a_tracker_that_fails_halfway_is_given_up_with_one_warning(folder, config, monkeypatch, caplog):
    with tracked(config, folder, "run", PARAMETERS) as tracker:
        tracker.curve(CURVE, HISTORY[:1])
        logger = type(tracker._store.logger(CURVE))
        asked = []
        monkeypatch.setattr(
            logger, "log_metrics", lambda *_, **__: (asked.append(1), (_ for _ in ()).throw(OSError("store\nis gone")))
        )
        for epoch in (2, 3):
            tracker.curve(CURVE, HISTORY[:epoch])
        tracker.report(REPORT, [])
    assert len(asked) == 1
    said = [record.message for record in caplog.records if record.name.startswith("modalloy")]
    assert said == ["tracking has failed and stops (store is gone); the work itself goes on."]


def test_a_store_that_becomes_read_only_is_given_up(folder, caplog):
    with tracked(TrackingConfig("mlflow"), folder, "run", PARAMETERS) as tracker:
        tracker.curve(CURVE, HISTORY[:1])
        (folder / "tracking/mlflow.db").unlink()
        (folder / "tracking/mlflow.db").mkdir()
        tracker._store._logger._mlflow_client._tracking_client.store.engine.dispose()
        tracker.curve(CURVE, HISTORY[:2])
    assert "tracking has failed and stops" in caplog.text


def test_a_tracker_that_cannot_start_is_an_error(tmp_path, config):
    (tmp_path / "tracking").write_text("in the way")
    with pytest.raises(ConfigError, match=rf"tracking by {config.tracker} can't start at .*tracking"):
        track(tmp_path, config, range(1, 2))
    assert not (tmp_path / "tracking.json").exists()


@pytest.mark.parametrize("name", ["mlflow", "tensorboard"])
def test_a_missing_extra_is_named(tmp_path, name, monkeypatch):
    missing = {"mlflow": ["mlflow"], "tensorboard": ["torch.utils.tensorboard", "tensorboard", "tensorboardX"]}
    for module in missing[name]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'modalloy\[{name}\]'"):
        track(tmp_path, TrackingConfig(name), range(1, 2))


def test_no_tracker_keeps_nothing(tmp_path):
    track(tmp_path, TrackingConfig(), range(1, 4))
    assert not list(tmp_path.iterdir())
    Tracker().curve(CURVE, HISTORY)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"uri": "sqlite:///x.db"}, "tracking.uri is MLflow's"), ({"experiment": "a/b"}, "experiment may hold letters")],
)
def test_impossible_settings_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        replace(TrackingConfig("csv"), **changes)


def test_an_unknown_tracker_is_refused():
    config = TrackingConfig()
    object.__setattr__(config, "tracker", "wandb")  # past the type checks that only the tests have
    with pytest.raises(ConfigError, match="one of none, mlflow, tensorboard, csv, got 'wandb'"):
        config.__post_init__()


def test_flat_keeps_every_leaf():
    assert flat({"a": [{"b": 1}, 2], "c": {}, "d": None}) == {"a/0/b": 1, "a/1": 2, "d": None}


@pytest.mark.slow
def test_without_a_tracker_nothing_of_it_is_imported():
    code = (
        "import sys, modalloy.workflow.run, modalloy.training.fusion\n"
        "print([name for name in ('mlflow', 'tensorboard', 'sqlalchemy', 'alembic') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == "[]"
