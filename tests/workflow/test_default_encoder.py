import json
import logging

import pytest

from modalloy.errors import ConfigError
from modalloy.fusion.alloy import FORMAT
from modalloy.workflow.default_encoder import default_spec


def write(folder, text):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(text)
    return folder


def alloy(folder):
    return write(folder, json.dumps({"format": FORMAT}))


def test_the_one_alloy_is_taken_and_named(tmp_path, caplog):
    one = alloy(tmp_path / "runs" / "one")
    write(tmp_path / "runs" / "aligned", '{"format": "modalloy-aligned-1"}')
    write(tmp_path / "runs" / "damaged", "{")
    write(tmp_path / "runs" / "list", "[]")
    alloy(tmp_path / "runs" / "deeper" / "inputs")
    with caplog.at_level(logging.INFO):
        assert default_spec(tmp_path / "runs") == f"alloy:{one}"
    assert f"alloy:{one}" in caplog.text


def test_without_one_it_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no alloy in .*runs/.*modalloy demo.*--encoder clip:"):
        default_spec(tmp_path / "runs")


def test_of_several_one_must_be_named(tmp_path):
    two, one = alloy(tmp_path / "runs" / "two"), alloy(tmp_path / "runs" / "one")
    with pytest.raises(ConfigError, match=f"name one: --encoder alloy:{one}, --encoder alloy:{two}"):
        default_spec(tmp_path / "runs")
