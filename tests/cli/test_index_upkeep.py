import json

import pytest
from index.picture_rows import head, picture_rows, table_of
from toy_encoders import Toy

from modalloy.cli.main import USER_MISTAKE, main
from modalloy.index import create_index


@pytest.fixture
def location(tmp_path):
    index = create_index(tmp_path / "index", head(tmp_path / "pictures"))
    index.commit(table_of(picture_rows(tmp_path / "pictures", 4)))
    return str(tmp_path / "index")


def test_listing(location, capsys):
    arguments = ["index", "list", "--index", location, "--where", "year >= 2001", "--where", "camera = X100"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in found["rows"]] == ["sub:1.png", "sub:3.png"]
    # As JSON, since 2001 equals 2001.0.
    assert json.dumps(found["rows"][0]["metadata"]) == '{"camera": "X100", "year": 2001, "indoors": false}'
    assert (found["pictures"], found["captions"], found["encoder"], found["generation"]) == (4, 8, "toy", 0)
    assert found["sources"][0]["pictures"] == 4 and found["bytes"] > 1000
    assert found["fields"] == {"camera": "text", "year": "number", "indoors": "truth"}
    assert main([*arguments, "--limit", "1", "--offset", "1"]) == 0
    out = capsys.readouterr().out
    assert "path (text), " in out and "height (number), " in out and "year (number), indoors (truth)\n" in out
    assert "4 pictures, 8 captions" in out and "sub:3.png" in out and "sub:1.png" not in out
    assert "year=2003" in out and "2003.0" not in out
    assert "1 of 2 shown; --limit N and --offset N show others" in out
    assert main(arguments) == 0
    assert "shown" not in capsys.readouterr().out
    assert main(["index", "list", "--index", location, "--where", "colour = red"]) == USER_MISTAKE
    assert "no field 'colour'" in capsys.readouterr().err
    assert main(["index", "list", "--index", location, "--limit", "-1"]) == USER_MISTAKE


def test_verifying(location, capsys, tmp_path):
    assert main(["index", "verify", "--index", location, "--files"]) == 0
    out = capsys.readouterr().out
    assert "4 pictures and 8 captions checked" in out and out.endswith("nothing is wrong\n")
    (tmp_path / "pictures" / "sub" / "2.png").unlink()
    assert main(["index", "verify", "--index", location, "--files"]) == 1
    assert "file missing or unreadable" in capsys.readouterr().out
    assert main(["index", "verify", "--index", location, "--files", "--repair", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["count"], finding["examples"]) == (1, ["sub:2.png"])
    assert main(["index", "verify", "--index", str(tmp_path / "nowhere")]) == USER_MISTAKE


def test_exporting_and_importing(location, capsys, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert main(["index", "export", "npy-parquet", str(out), "--index", location, "--half"]) == 0
    assert "8 rows, each a picture with a caption where it has one, in 1 part\n" in capsys.readouterr().out
    assert main(["index", "export", "npy-parquet", str(out), "--index", location]) == USER_MISTAKE
    assert main(["index", "export", "faiss", str(tmp_path / "no"), "--index", location, "--half"]) == USER_MISTAKE
    monkeypatch.setattr("modalloy.encoders.load_encoder", lambda _: Toy(0))
    arguments = ["index", "import", "npy-parquet", str(out), "--encoder", "toy-0", "--index", str(tmp_path / "other")]
    capsys.readouterr()
    assert main(arguments) == USER_MISTAKE
    assert "was exported from an index of toy, whose vectors can't be compared with those of toy-0" in (
        " ".join(capsys.readouterr().err.split())
    )
    (out / "modalloy.json").unlink()
    assert main(arguments) == 0
    assert "4 pictures and 8 captions imported" in capsys.readouterr().out
