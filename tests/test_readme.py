"""What the README promises."""

import re
import shutil
from pathlib import Path

import pytest
from doc_examples import blocks

import modalloy
from modalloy.cli.main import VERBS
from modalloy.data import Manifest, demo_manifest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_python_example_runs(tmp_path, monkeypatch, capsys):
    whole = demo_manifest()
    few = [item for name, count in (("train", 16), ("val", 8), ("tune", 8)) for item in whole.split(name)[:count]]
    few_manifest = Manifest(whole.root, tuple(few))
    monkeypatch.setattr(modalloy, "demo_manifest", lambda: few_manifest, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(whole.absolute(few[0]), tmp_path / "picture.png")
    (example,) = blocks(ROOT / "README.md", "python")
    exec(compile(example.code, "README.md", "exec"), {})
    assert "Hit(" in capsys.readouterr().out
    assert (tmp_path / "runs/alloy/config.json").exists()


def test_every_verb_is_listed():
    listed = re.findall(r"^\| `modalloy (\w+)", README, flags=re.M)
    assert listed == [verb.name for verb in VERBS]


def test_the_tree_names_every_folder():
    folders = {path.parent.name for path in (ROOT / "src/modalloy").glob("*/__init__.py")}
    assert folders == set(re.findall(r"^  (\w+)/ ", README, flags=re.M))
