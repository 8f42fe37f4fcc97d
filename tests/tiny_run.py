"""A collection of some sixty clip-art pictures and a finished run on it, shared by the workflow's and the verbs' tests.

Three of the pictures are damaged: one is no picture at all and is left out when the collection is read; of two the
headers are whole, so that only their extraction fails. Don't change the shared folders: copy them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from modalloy.data import Manifest, demo_manifest, read_collection
from modalloy.workflow.config import RunConfig, load_config, save_config
from modalloy.workflow.run import Run

IMAGES = {"train": 26, "val": 9, "tune": 10, "test": 12}
TRUNCATED = {"broken-train": "train", "broken-test": "test"}
ALIGN = {"epochs": 2, "dim": 16, "batch_size": 8}
TRAINING = {"batch_size": 8, "queue_size": 32, "learning_rate": 1.0e-3}
SETTINGS: dict[str, Any] = {
    "inputs": [
        {"name": "nets + sentences", "image": "efficientnet-lite0@64", "text": "minilm", "align": ALIGN},
        {"name": "patches + subwords", "image": "vit-s14-focus@56", "text": "subwords", "align": ALIGN},
    ],
    "seeds": [0, 1],
    "fusion": {
        "towers": {"token_dim": 8, "heads": 2},
        "first_stage": {"epochs": 2, **TRAINING},
        "second_stage": {"epochs": 1, **TRAINING},
    },
}


def write_collection(folder: Path) -> Path:
    """Rows of a table rather than a saved manifest, so that the pictures are checked when it is read."""
    (folder / "images").mkdir(parents=True)
    demo, rows = demo_manifest(), []
    for split, count in IMAGES.items():
        for item in demo.split(split)[:count]:
            shutil.copy(demo.absolute(item), folder / item.path)
            rows.append({"id": item.id, "path": item.path, "split": split, "captions": item.captions})
    for position, (name, split) in enumerate(TRUNCATED.items()):
        path = folder / "images" / f"{name}.jpg"
        with Image.open(demo.absolute(demo[position])) as picture:
            picture.convert("RGB").save(path)
        path.write_bytes(path.read_bytes()[:-1500])
        rows.insert(5, {"id": name, "path": f"images/{path.name}", "split": split, "captions": [f"{name} picture"]})
    (folder / "images" / "garbage.jpg").write_bytes(b"no picture")
    rows.insert(3, {"id": "garbage", "path": "images/garbage.jpg", "split": "train", "captions": ["garbage"]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_config(collection: Path, folder: Path, path: Path) -> RunConfig:
    """A tiny run's configuration, written to `path`."""
    path.write_text(json.dumps({"collection": str(collection), "folder": str(folder), **SETTINGS}))
    config = load_config(path)
    save_config(config, path)
    return config


@pytest.fixture(scope="session")
def tiny_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("tiny") / "collection")


@pytest.fixture(scope="session")
def tiny_manifest(tiny_collection: Path) -> Manifest:
    return read_collection(tiny_collection)[0]


@pytest.fixture(scope="session")
def finished_run(tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    Run(write_config(tiny_collection, folder, folder.with_suffix(".yaml"))).execute()
    return folder


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, elsewhere, to be changed at will."""
    return shutil.copytree(finished_run, tmp_path / "moved" / "run")
