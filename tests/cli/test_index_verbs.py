import json
import shutil

import pytest
from index.small_source import CountingEncoder, write_picture

from modalloy.cli.main import USER_MISTAKE, main
from modalloy.index import open_index
from modalloy.workflow import indexing


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working folder with four pictures, and an encoder by the spec "counting-a"."""
    monkeypatch.setattr(indexing, "load_encoder", {"counting-a": CountingEncoder()}.__getitem__)
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        write_picture(tmp_path / "pictures" / f"{number}.png", number, ["one"])
    return tmp_path


def result(capsys, *arguments):
    assert main(["index", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def mistake(capsys, *arguments):
    assert main(["index", *arguments]) == USER_MISTAKE
    out, err = capsys.readouterr()
    assert out == ""
    return err.strip().splitlines()[-1]


def test_an_index_from_build_to_removal(capsys, place):
    built = result(capsys, "build", "pictures", "--encoder", "counting-a")
    assert built["sources"][0]["new"] == 4 and built["index"] == str(place / "index")
    write_picture(place / "holidays" / "0.png", 40)
    assert result(capsys, "add", "holidays")["sources"][0]["source"] == "holidays"
    (place / "pictures" / "3.png").unlink()
    assert result(capsys, "update")["sources"][0]["removed"] == 1
    assert result(capsys, "remove", "0.png")["removed"] == 1
    assert result(capsys, "remove", "--source", "holidays")["removed"] == 1
    assert {source.name for source in open_index("index").head.sources} == {""}


def test_people_see_once_what_was_done_and_what_was_left_out(capsys, place, caplog):
    (place / "pictures" / "bad[red].png").write_bytes(b"no picture")
    assert main(["index", "build", "pictures", "--encoder", "counting-a"]) == 0
    out, err = capsys.readouterr()
    assert "made by counting-a" in out and out.count("left out: bad[red].png") == 1 and "recaptioned" in out
    assert "left out" not in err + caplog.text


def test_what_is_passed_over_or_not_listed_is_told_of(capsys, place):
    (place / "pictures" / "IMG_1.HEIC").touch()
    folder = place / "pictures"
    unread = {"folder": str(folder), "suffixes": {".heic": 1}, "lists": [], "unlisted": []}
    assert result(capsys, "build", "pictures", "--encoder", "counting-a")["sources"][0]["unread"] == unread
    (folder / "metadata.csv").write_text("path,caption\n0.png,A.\n1.png,B.\n")
    assert main(["index", "update"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"passed over in {folder}: 1 .heic (not read; convert pictures to JPEG)",
        f"not listed in {folder / 'metadata.csv'}, so left out: 2 pictures of {folder} (2.png, 3.png); "
        "list them too, or move the list elsewhere to have all pictures read",
    ]


def test_a_source_out_of_reach_is_told_of_and_fails(capsys, place):
    result(capsys, "build", "pictures", "--encoder", "counting-a")
    shutil.rmtree(place / "pictures")
    assert main(["index", "update", "--json"]) == USER_MISTAKE
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert "isn't there" in problem


def test_most_of_a_folder_goes_only_if_that_is_allowed(capsys, place):
    result(capsys, "build", "pictures", "--encoder", "counting-a")
    for number in range(3):
        (place / "pictures" / f"{number}.png").unlink()
    assert "--allow-removals" in mistake(capsys, "build", "pictures")
    assert result(capsys, "build", "pictures", "--allow-removals")["sources"][0]["removed"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build", "pictures"], "there is no alloy in runs/"),
        (["build", "nowhere", "--encoder", "counting-a"], "nowhere isn't there"),
        (["build", "pictures", "--encoder", "counting-a", "--batch_size", "0"], "batch_size must be at least 1"),
        (["build", "pictures", "--encoder", "counting-a", "--device", "cuda:99"], "there is no device 'cuda:99'"),
        (["add", "pictures"], "holds no index"),
        (["update"], "holds no index"),
        (["remove", "a"], "holds no index"),
        (["remove"], "exactly one of them"),
        (["remove", "a", "--source", ""], "exactly one of them"),
    ],
)
def test_mistakes(capsys, arguments, said, place):
    line = mistake(capsys, *arguments)
    assert line.startswith(f"modalloy index {arguments[0]}: ") and said in line
    assert not (place / "index").exists()
