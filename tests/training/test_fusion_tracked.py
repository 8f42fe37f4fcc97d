"""A tracked run has the curve of each fit that it uses, whenever that was trained."""

import csv
from pathlib import Path

import pytest
from toy_pairs import SPLITS, TRAINING, collection, features, new_fuser

from modalloy.training import fusion
from modalloy.training.tracking import Tracker, TrackingConfig, tracked

CURVE = "hada-stage-1/seed-0"


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    root = tmp_path_factory.mktemp("collection")
    return features(collection(root / "pictures", SPLITS), root / "features")


def fit(paired, folder: Path, tracker: Tracker):
    splits = paired.split("train"), paired.split("val")
    return fusion.fit_fuser(new_fuser(paired), TRAINING, *splits, folder, "test", tracker, CURVE)


def kept(place: Path) -> list[dict[str, float]]:
    """The rows of the curve of the only run that is tracked there."""
    (path,) = place.glob(f"tracking/modalloy/*/{CURVE}/metrics.csv")
    with path.open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_a_finished_fit_gives_its_curve_once_to_every_run_that_uses_it(paired, tmp_path):
    for name in ("first", "second"):
        with tracked(TrackingConfig("csv"), tmp_path / name, name, {}) as tracker:
            for _ in range(2):
                history = fit(paired, tmp_path / "fit", tracker)
    assert [row["epoch"] for row in kept(tmp_path / "first")] == [1, 2, 3]
    for name in ("first", "second"):
        rows = [{key: row[key] for key in history[1]} for row in kept(tmp_path / name)]
        assert rows == [pytest.approx(row) for row in history[1:]]


def test_a_fit_with_nothing_left_but_its_record_gives_its_curve(paired, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(fusion, "write_json", lambda *_: 1 / 0)
        fit(paired, tmp_path / "fit", Tracker())
    with tracked(TrackingConfig("csv"), tmp_path / "later", "later", {}) as tracker:
        fit(paired, tmp_path / "fit", tracker)
    assert [row["epoch"] for row in kept(tmp_path / "later")] == [1, 2, 3]
