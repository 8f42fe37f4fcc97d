import json

import pytest
from PIL import Image

from modalloy.cli.main import USER_MISTAKE, main


@pytest.fixture
def picture(tmp_path):
    """Writes a picture and returns its path."""

    def write(name):
        Image.new("RGB", (4, 3)).save(tmp_path / name)
        return tmp_path / name

    return write


def test_a_whole_run_ends_with_0(capsys, finished_run):
    assert main(["doctor", str(finished_run)]) == 0
    out = capsys.readouterr().out
    assert str(finished_run / "index") in out and out.endswith("\n0 errors, 0 warnings\n")


def test_problems_end_with_1(capsys, run_copy):
    shard = run_copy / "features" / "subwords" / "text" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["doctor", str(shard.parent), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    (problem,) = found["problems"]
    assert str(shard) in problem["message"]
    assert (problem["severity"], problem["item"]) == ("error", None)
    assert main(["doctor", str(shard.parent)]) == 1
    assert f"error {problem['message']}" in capsys.readouterr().out.splitlines()


def test_what_people_called_their_files_is_no_markup(capsys, monkeypatch):
    problem = {"severity": "error", "item": "[b]", "message": "[/z] is broken"}
    found = {"checked": ["[red]x[/y]"], "problems": [problem]}
    monkeypatch.setattr("modalloy.cli.doctor.Doctor.execute", lambda *_: found)
    assert main(["doctor", "demo"]) == 1
    assert capsys.readouterr().out.splitlines() == ["[red]x[/y]", "error [b]: [/z] is broken", "1 error, 0 warnings"]


def test_nothing_to_look_at_is_a_mistake(capsys, tmp_path):
    assert main(["doctor", str(tmp_path / "nowhere")]) == USER_MISTAKE
    assert main(["doctor", str(tmp_path)]) == USER_MISTAKE
    assert "holds no images" in capsys.readouterr().err


def test_warnings_alone_end_with_0(capsys, picture):
    folder = picture("a.png").parent
    assert main(["doctor", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"collection {folder}: train 1 image, 0 captions"
    assert lines[1:] == ["warning no image has a caption; the collection can only be indexed", "0 errors, 1 warning"]
    (folder / "b.png").write_bytes(b"no picture")
    assert main(["doctor", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "error b.png: left out: " in out and "error: " not in out and out.endswith("1 error, 1 warning\n")


def test_many_problems_of_a_kind_are_counted(capsys, monkeypatch):
    def problem(severity, item, message):
        return {"severity": severity, "item": item, "message": message}

    missing = [problem("error", f"{row}", f"left out: /x y/{row}.jpg doesn't exist; check") for row in range(12)]
    bare = [problem("warning", f"{row}.jpg", "the image has no caption; it can only be indexed") for row in range(1000)]
    shared = [problem("warning", "a", f"its caption 'It's {row}.' is also that of {row} in val") for row in range(10)]
    problems = [*missing, bare[0], *shared, *bare[1:]]
    monkeypatch.setattr("modalloy.cli.doctor.Doctor.execute", lambda *_: {"checked": [], "problems": problems})
    assert main(["doctor", "demo"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 + 11 + 10 + 1
    assert lines[9:11] == [
        "error 9: left out: /x y/9.jpg doesn't exist; check",
        "error ... and 2 more of this kind (--json lists all)",
    ]
    assert lines[21] == "warning ... and 990 more of this kind (--json lists all)"
    assert lines[-1] == "12 errors, 1,010 warnings"
    assert main(["doctor", "demo", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == problems
