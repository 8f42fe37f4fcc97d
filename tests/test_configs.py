"""The configurations that come with the project: each is read, and the README's second example is run."""

from pathlib import Path

import pytest
import yaml
from encoders.hub import models

from modalloy.files import read_json
from modalloy.search import Searcher
from modalloy.workflow.config import load_config
from modalloy.workflow.run import Run

CONFIGS = Path(__file__).parent.parent / "configs"
EXAMPLE = CONFIGS / "clip-siglip.yaml"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_read_and_opens_with_the_command_that_runs_it(path):
    load_config(path)
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    command = next(line for line in comment if "modalloy run" in line)
    assert path.relative_to(CONFIGS.parent).as_posix() in command


@pytest.mark.slow
def test_clip_and_siglip_are_amalgamated_by_the_example(tiny_collection, tmp_path):
    """The same file on tiny models with random weights, of which the hub's loader can't tell that they are tiny."""
    clip, siglip = models.save_clip(tmp_path / "clip"), models.save_siglip(tmp_path / "siglip")
    config = load_config(
        EXAMPLE,
        {
            "collection": str(tiny_collection),
            "images": None,
            "folder": str(tmp_path / "run"),
            "inputs.0.encoder": f"clip:{clip}",
            "inputs.1.encoder": f"siglip:{siglip}",
            "seeds": [0],
            "fusion.first_stage.epochs": 2,
            "fusion.second_stage.epochs": 1,
        },
    )
    report = Run(config).execute()
    assert report == read_json(tmp_path / "run" / "report.json")
    names = [each["name"] for each in yaml.safe_load(EXAMPLE.read_text())["inputs"]]
    assert {*names, "HADA stage 1", "HADA stage 2", "validation-tuned weighted cosine"} <= set(report["systems"])
    searcher = Searcher.open(tmp_path / "run" / "gallery")
    assert len(searcher.by_text("a red telephone", k=5)) == 5
