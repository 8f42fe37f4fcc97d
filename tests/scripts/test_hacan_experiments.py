"""HACAN's experiments: their configuration, and a tiny one whose ranks are those of the evaluation."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from tiny_run import ALIGN

from modalloy.errors import ConfigError
from modalloy.workflow.collections import open_with_rejects
from modalloy.workflow.features import Collection
from modalloy.workflow.stages import evaluate_stages
from modalloy.workflow.stages_config import WEIGHED

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "flickr8k" / "hacan.yaml"
_SPEC = importlib.util.spec_from_file_location("hacan_experiments", ROOT / "scripts" / "hacan_experiments.py")
assert _SPEC is not None and _SPEC.loader is not None
hacan_experiments = importlib.util.module_from_spec(_SPEC)
# Dataclasses look their module up.
sys.modules[_SPEC.name] = hacan_experiments
_SPEC.loader.exec_module(hacan_experiments)


def test_the_configuration_is_whole_and_opens_with_its_command():
    config = hacan_experiments.load(CONFIG, {"seeds": [4], "images": None})
    assert config.seeds == (4,) and config.images == "flickr8k/images"
    assert CONFIG.relative_to(ROOT).as_posix() in CONFIG.read_text().split("collection:")[0]
    known = {f"{name}, {stage}" for name in config.alignments for stage in ("global", "focal", "cross-layer")}
    assert set(config.reference) <= known and set(config.averages["both directions"]) <= set(config.alignments)


def test_an_average_of_what_is_not_aligned_is_refused():
    with pytest.raises(ConfigError, match="the average 'both' is of 'b', which is no alignment"):
        hacan_experiments.load(CONFIG, {"averages": {"both": ["words to regions", "b"]}})


def test_an_average_of_what_has_no_local_branch_is_refused():
    with pytest.raises(ConfigError, match="the average 'both' is of 'heads alone', which has no local branch"):
        hacan_experiments.load(CONFIG, {"averages": {"both": ["heads alone", "words to regions"]}})


@pytest.mark.parametrize("only", [[], ["--only", "both directions", "words to regions"]])
def test_each_alignment_is_trained_once_a_seed_those_of_averages_too(monkeypatch, only):
    trained = []
    monkeypatch.setattr(hacan_experiments.Experiments, "__init__", lambda self, config, split, device: None)
    monkeypatch.setattr(hacan_experiments.Experiments, "encoder", lambda self, *which: trained.append(which))
    hacan_experiments.main([str(CONFIG), "--align_only", "--seeds", "0", "1", *only])
    names = list(hacan_experiments.load(CONFIG, {}).alignments)
    expected = names if not only else ["words to regions", "regions to words"]
    assert trained == [(name, seed) for seed in (0, 1) for name in expected]


@pytest.mark.slow
def test_ranks_are_those_of_the_evaluation_and_are_kept(tiny_collection, finished_run, tmp_path, capsys, monkeypatch):
    local = {**ALIGN, "epochs": 1, "local": {"dim": 8}}
    kept = shutil.copytree(finished_run / "features", tmp_path / "features")
    settings = {
        "collection": str(tiny_collection),
        "features": str(kept),
        "folder": str(tmp_path / "aligned"),
        "image": "efficientnet-lite0@64",
        "text": "minilm",
        "alignments": {"heads alone": {**ALIGN, "epochs": 1}, "words": local, "regions": local},
        "averages": {"both": ["words", "regions"]},
        "reference": ["words, cross-layer"],
        "seeds": [0, 1],
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings))
    hacan_experiments.main([str(path), "--align_only", "--only", "words"])
    hacan_experiments.main([str(path), "--only", "words", "--seeds", "0"])
    assert {each.name for each in (tmp_path / "aligned").iterdir()} == {"words-0", "words-1", "ranks"}
    hacan_experiments.main([str(path), "--only", "heads alone", "--seeds", "0"])
    hacan_experiments.main([str(path), "--json"])
    *_, line = capsys.readouterr().out.splitlines()
    systems = json.loads(line)["systems"]
    stages = ("global", "focal", "cross-layer")
    expected = [f"{name}, {stage}" for name in ("words", "regions", "both") for stage in stages]
    assert list(systems) == ["heads alone, global", *expected]
    assert all(each["seeds"] == 2 for each in systems.values())

    experiments = hacan_experiments.Experiments(hacan_experiments.load(path, {}), "test", "cpu")
    collection = Collection(open_with_rejects(str(tiny_collection), None)[0], kept)
    alone = [evaluate_stages([experiments.encoder("words", seed)], collection, "test", WEIGHED) for seed in (0, 1)]
    for stage in stages:
        mean = sum(each["systems"][stage]["rsum"] for each in alone) / 2
        assert systems[f"words, {stage}"]["rsum"] == pytest.approx(mean)

    monkeypatch.setattr(hacan_experiments, "rank_stages", None)
    hacan_experiments.main([str(path), "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["systems"] == systems
