"""The experiments' list, and the ablation of a tiny run's experts on its validation part alone."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from tiny_run import SETTINGS, TRAINING
from torch.nn.functional import normalize

from modalloy.evaluation import EmbeddingScores, metrics, rank_queries
from modalloy.fusion import PairedFeatures
from modalloy.workflow.config import load_config

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("experiments", ROOT / "scripts" / "experiments.py")
assert _SPEC is not None and _SPEC.loader is not None
experiments = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(experiments)

LISTED = yaml.safe_load(experiments.LIST.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", LISTED)
def test_every_listed_experiment_is_a_configuration_with_a_folder_of_its_own(name):
    folders = [load_config(ROOT / each["config"], each.get("set")).folder for each in LISTED.values()]
    assert len(set(folders)) == len(LISTED)
    assert load_config(ROOT / LISTED[name]["config"], LISTED[name].get("set")).seeds == (0, 1, 2, 3, 4)


def test_an_unknown_experiment_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        experiments.main(["tables", "--threads", "1", "foriegn"])
    assert "no experiment is called 'foriegn'" in capsys.readouterr().err


@pytest.fixture
def tiny_experts(tiny_collection, finished_run, tmp_path):
    """A tiny run's configuration with two experts."""
    towers = {"method": "concat-linear"}
    settings = {
        **SETTINGS,
        "collection": str(tiny_collection),
        "folder": str(tmp_path / "run"),
        "features": str(finished_run / "features"),
        "fusion": {
            "experts": [
                {"name": name, "towers": towers | changes, "training": {"epochs": 1, **TRAINING}}
                for name, changes in (("plain", {}), ("summaries", {"read_summaries": True}))
            ]
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings))
    return path


def printed(capsys, count: int) -> list[dict]:
    """The last tables, as their JSON."""
    lines = capsys.readouterr().out.strip().splitlines()[-count:]
    return [next(iter(json.loads(line).values())) for line in lines]


def test_an_ablation_compares_the_experts_on_the_validation_part_alone(tiny_experts, monkeypatch, capsys):
    split = PairedFeatures.split
    asked = []
    monkeypatch.setattr(PairedFeatures, "split", lambda self, *names: asked.extend(names) or split(self, *names))
    experiments.main(["ablations", str(tiny_experts), "--json"])
    alone, mixed = printed(capsys, 2)
    for result in (alone, mixed):
        assert "tune" in result and "test" not in asked
        assert {"plain", "summaries"} <= set(result["systems"])
        assert result["systems"]["plain"]["seeds"] == 2
        assert {each["a"] for each in result["differences"]} == {"plain"}
    # The inputs may get all the weight, but never make a mixture worse on the items that chose its weights by RSum.
    for name in ("plain", "summaries"):
        assert mixed["systems"][name]["rsum"] >= alone["systems"][name]["rsum"]


def test_vectors_are_compared_at_each_length(tiny_experts, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "LENGTHS", (4, 32))
    experiments.main(["lengths", str(tiny_experts), "--json"])
    whole, four, longer = printed(capsys, 3)
    assert list(whole["systems"]) == ["alloy", "plain", "summaries"] and whole["differences"][0]["a"] == "alloy"
    # The alloy's first numbers are those of one of its parts.
    cut = [each for name in ("plain", "summaries") for each in (name, f"{name}, rotated")]
    assert list(four["systems"]) == ["alloy, rotated", *cut]
    # The experts' vectors are 32 numbers, so that there is nothing to cut.
    assert list(longer["systems"]) == ["alloy, rotated", "plain", "summaries"]
    assert {each["a"] for each in four["differences"]} == {"alloy, rotated"}
    fits = experiments.Run(load_config(tiny_experts)).fits
    items, expected = fits.validation, []
    for seed in (0, 1):
        images, captions = items.vectors(fits.fit_expert(fits.config.experts[0], seed))
        scores = EmbeddingScores(normalize(images[:, :4], dim=1), normalize(captions[:, :4], dim=1))
        expected.append(metrics(rank_queries(scores, items.caption_image)).rsum)
    assert four["systems"]["plain"]["rsum"] == pytest.approx(sum(expected) / 2)
