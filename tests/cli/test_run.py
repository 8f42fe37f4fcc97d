"""run, demo and report."""

import json
import shlex
import shutil
import sys

import pytest
import yaml
from tiny_run import ALIGN

from modalloy.cli.main import USER_MISTAKE, main
from modalloy.files import read_json
from modalloy.workflow.config import load_config
from modalloy.workflow.run import Run


@pytest.fixture
def results(finished_run):
    return read_json(finished_run / "report.json")


@pytest.fixture
def asked(monkeypatch, results):
    """The configurations that a command would run, none of which is."""
    configurations = []

    def execute(self):
        configurations.append(self.config)
        return results | {"folder": self.config.folder}

    monkeypatch.setattr(Run, "execute", execute)
    return configurations


def mistake(capsys, *arguments):
    assert main([str(each) for each in arguments]) == USER_MISTAKE
    out, err = capsys.readouterr()
    (line,) = err.strip().splitlines()
    assert out == "" and line.startswith(f"modalloy {arguments[0]}: ")
    return line


def test_a_finished_run_is_printed_as_json(capsys, finished_run, results):
    assert main(["run", str(finished_run / "config.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == results


def test_people_get_the_table_the_report_and_a_search_to_try(capsys, finished_run, results):
    assert main(["run", str(finished_run / "config.yaml")]) == 0
    out = capsys.readouterr().out
    for name, system in results["systems"].items():
        line = next(line for line in out.splitlines() if line.strip().startswith(f"{name} "))
        assert f" {system['rsum']:.1f}" in line
    assert f"report: {finished_run}/report.html" in out.splitlines()
    (search,) = [line.removeprefix("search: ") for line in out.splitlines() if line.startswith("search: ")]
    words = shlex.split(search)
    assert main([*words[words.index("search") :], "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 5


@pytest.mark.slow
def test_inputs_with_a_local_branch_are_shown_stage_by_stage(capsys, finished_run, tmp_path):
    local = {"image": "efficientnet-lite0@64", "align": {**ALIGN, "local": {"dim": 8}}}
    settings = [
        f"folder={tmp_path / 'run'}",
        f"features={shutil.copytree(finished_run / 'features', tmp_path / 'features')}",
        f"inputs.0={json.dumps({'name': 'sentences', 'text': 'minilm', **local})}",
        f"inputs.1={json.dumps({'name': 'subwords', 'text': 'subwords', **local})}",
        "seeds=[0]",
        "stages.depth={focal_candidates: 5, cross_candidates: 2}",
        "fusion.methods=[mean of cosines, validation-tuned weighted cosine, HADA stage 1, HADA stage 2]",
    ]
    command = ["run", str(finished_run / "config.yaml"), "--set", *settings]
    assert main([*command, "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert list(stages) == ["sentences", "subwords"]
    assert main(command) == 0
    out = capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    for name, staged in stages.items():
        assert list(staged["systems"]) == ["global", "focal", "cross-layer"]
        (weight,) = staged["global_weight"].values()
        assert f"{name}, stage by stage (the embeddings weigh {weight:g})" in out
        assert f"<h3>{name}</h3>" in page
    assert 'id="stages"' in page and 'id="words"' in page


def test_settings_are_overridden(asked, finished_run, tmp_path):
    pairs = [f"folder={tmp_path / 'x'}", "fusion.first_stage.epochs=7", "seeds=[4, 5]"]
    assert main(["run", str(finished_run / "config.yaml"), "--set", *pairs, "--threads", "1"]) == 0
    (config,) = asked
    assert (config.folder, config.fusion.first_stage.epochs, config.seeds) == (str(tmp_path / "x"), 7, (4, 5))
    assert config.threads == 1


def test_the_search_to_try_may_be_pasted(asked, capsys, finished_run, tmp_path):
    assert main(["run", str(finished_run / "config.yaml"), "--set", f"folder={tmp_path}/my [b]run"]) == 0
    out = capsys.readouterr().out
    assert f"report: {tmp_path}/my [b]run/report.html" in out
    (search,) = [line for line in out.splitlines() if line.startswith("search: ")]
    assert shlex.split(search)[-4] == f"{tmp_path}/my [b]run"


@pytest.mark.parametrize(
    ("found", "begun_with", "program"),
    [
        ("/bin/modalloy", "/a/modalloy/__main__.py", "modalloy"),
        (None, "/a b/bin/modalloy", "'/a b/bin/modalloy'"),
        (None, "/a/modalloy/__main__.py", f"{sys.executable} -m modalloy"),
    ],
)
def test_the_search_to_try_is_a_command(asked, capsys, finished_run, monkeypatch, found, begun_with, program):
    monkeypatch.setattr(shutil, "which", lambda _: found)
    monkeypatch.setattr(sys, "argv", [begun_with])
    assert main(["run", str(finished_run / "config.yaml")]) == 0
    assert f"\nsearch: {program} search {finished_run} " in capsys.readouterr().out


def test_the_demo_runs_the_configuration_that_comes_with_modalloy(asked, capsys, results):
    assert main(["demo", "--json", "--folder", "elsewhere", "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["systems"] == results["systems"]
    (config,) = asked
    assert (config.collection, config.folder, config.threads) == ("demo", "elsewhere", 1)


def test_the_report_is_written_anew(capsys, monkeypatch, finished_run, results):
    written = []
    monkeypatch.setattr("modalloy.workflow.run.write_run_report", lambda run, report: written.append((run, report)))
    assert main(["report", str(finished_run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == results
    ((run, report),) = written
    assert run.folder == finished_run and report == results


def test_mistakes(capsys, finished_run, tmp_path):
    config = finished_run / "config.yaml"
    assert "nowhere.yaml can't be read" in mistake(capsys, "run", tmp_path / "nowhere.yaml")
    assert "--set takes KEY=VALUE" in mistake(capsys, "run", config, "--set", "folder")
    assert "--set takes KEY=VALUE" in mistake(capsys, "run", config, "--set", "seeds=[1")
    assert "'first' is no position in a list of 2" in mistake(capsys, "run", config, "--set", "seeds.first=1")
    assert "bogus" in mistake(capsys, "run", config, "--set", "bogus=1")
    assert "seeds" in mistake(capsys, "run", config, "--set", "seeds=many")
    assert "isn't there" in mistake(capsys, "run", config, "--set", "collection=nowhere", f"folder={tmp_path / 'x'}")
    assert "no run directory" in mistake(capsys, "report", tmp_path)


def test_an_unknown_encoder_is_found_before_the_work(capsys, finished_run, tmp_path):
    settings = load_config(finished_run / "config.yaml").to_dict() | {"folder": str(tmp_path / "run")}
    settings["inputs"][1]["text"] = "subword"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["run", str(tmp_path / "run.yaml")]) == USER_MISTAKE
    assert "Did you mean 'subwords'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "features").exists()


def test_a_report_of_another_configuration_is_not_written_anew(capsys, run_copy):
    config = run_copy / "config.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))
    assert f"bring it up to date: modalloy run {config}" in mistake(capsys, "report", run_copy)


def test_an_unfinished_run_has_no_report(capsys, run_copy):
    (run_copy / "report.json").unlink()
    assert "report.json doesn't exist" in mistake(capsys, "report", run_copy)
