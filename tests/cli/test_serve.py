import json
from pathlib import Path

import pytest
from index.picture_rows import head

from modalloy import serve as serving
from modalloy.cli.main import USER_MISTAKE, main
from modalloy.index import create_index
from modalloy.serve import ServeConfig


@pytest.fixture
def served(monkeypatch):
    """What is to be served, instead of serving it."""
    asked = []
    monkeypatch.setattr(serving, "serve", lambda *given: asked.append(given) or "http://127.0.0.1:1")
    return asked


def test_the_options_are_the_configuration(capsys, served, tmp_path):
    assert main(["serve", "--json"]) == 0
    assert served.pop() == ("index", ServeConfig())
    assert json.loads(capsys.readouterr().out) == {"index": "index", "address": "http://127.0.0.1:1"}
    options = ["--host", "::1", "--port", "0", "--api_key_file", "key", "--allow_origin", "http://a.b", "https://c.d"]
    options += ["--k_most", "5", "--queue", "6", "--batch", "7", "--max_upload_bytes", "8", "--max_pixels", "9"]
    assert main(["serve", "runs/a", *options, "--no-page", "--insecure", "--timeout_s", "2"]) == 0
    origins = ("http://a.b", "https://c.d")
    assert served == [
        (
            "runs/a",
            ServeConfig(
                "::1",
                0,
                Path("key"),
                origins,
                5,
                6,
                7,
                max_upload_bytes=8,
                max_pixels=9,
                timeout_s=2.0,
                page=False,
                insecure=True,
            ),
        )
    ]
    assert capsys.readouterr().out == "stopped, as it was told to; runs/a was served at http://127.0.0.1:1\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "70000"], "port must be from 0 to 65535"),
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--allow_origin", "*"], "one by one"),
        (["nowhere", "--host", "0.0.0.0"], "nowhere holds no index"),
        (["--api_key_file", "nowhere"], "API key's file nowhere"),
    ],
)
def test_mistakes_are_one_line(capsys, monkeypatch, tmp_path, options, said):
    monkeypatch.chdir(tmp_path)
    create_index("index", head(tmp_path))
    monkeypatch.delenv("MODALLOY_API_KEY", raising=False)
    assert main(["serve", *options]) == USER_MISTAKE
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("modalloy serve: ") and said in line
