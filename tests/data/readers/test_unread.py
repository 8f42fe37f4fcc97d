import io
import json
import os
import tarfile

import pytest

from modalloy.data.readers import read_collection
from modalloy.data.readers.unread import Unread, unread_in

NAMED = ("./a.png", "sub//b.png", "broken.png", "gone.png")
IMAGES = [{"filename": name, "split": "train", "sentences": [{"raw": name}]} for name in NAMED]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "".join(f"{each}\n" for each in ("path", *NAMED))),
        ("dataset_x.json", json.dumps({"images": IMAGES})),
    ],
)
def test_pictures_that_a_list_does_not_name(tmp_path, picture, name, content):
    for each in ("a.png", "sub/b.png", "c.png", "sub/d.png", "sub/.hidden.png"):
        picture(each)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / name).write_text(content)
    # A listed one that can't be read is among the rejects instead.
    assert any("broken.png" in reject.reason for reject in read_collection(tmp_path)[1])
    found = unread_in(tmp_path)
    assert (found.lists, found.unlisted) == ((str(tmp_path / name),), ("c.png", "sub/d.png"))
    assert unread_in(tmp_path / name) == Unread(str(tmp_path / name))
    assert unread_in(tmp_path, tmp_path) == Unread(str(tmp_path))


def test_only_some_of_many_are_named(tmp_path):
    for name in "abcde":
        (tmp_path / f"{name}.png").touch()
    (tmp_path / "metadata.csv").write_text("path\na.png\n")
    (line,) = unread_in(tmp_path).lines()
    assert f"left out: 4 pictures of {tmp_path} (b.png, c.png, d.png, ...); list them too" in line


def test_pictures_beside_tables_of_splits(tmp_path, picture):
    picture("train/a.png"), picture("train/b.png"), picture("other/c.png")
    (tmp_path / "train" / "metadata.csv").write_text("path,caption\na.png,A.\n")
    assert unread_in(tmp_path).unlisted == ("other/c.png", "train/b.png")


def test_pictures_that_came_after_a_manifest_was_saved(tmp_path, picture, monkeypatch):
    picture("a.png")
    read_collection(tmp_path)[0].save(tmp_path / "manifest.jsonl")
    picture("b.png")
    monkeypatch.chdir(tmp_path)
    assert unread_in(".").unlisted == ("b.png",)


def test_a_folder_that_is_read_whole_lists_nothing(tmp_path, picture):
    picture("a.png")
    assert unread_in(tmp_path) == Unread(str(tmp_path)) and unread_in(tmp_path).lines() == []


def test_tars_are_not_read_for_it(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    monkeypatch.setattr("modalloy.data.readers.pick.read_tars", None)
    (tmp_path / "clip.mov").touch()
    assert unread_in(tmp_path) == Unread(str(tmp_path), {".mov": 1})


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_can_be_anything(tmp_path):
    (tmp_path / "metadata.csv").write_text("path\na.png\n")
    (tmp_path / os.fsdecode(b"new\nline\xe9.png")).touch()
    assert unread_in(tmp_path).unlisted == ("new\\nline\\udce9.png",)


def test_pictures_that_a_list_names_through_a_link_are_listed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "metadata.csv").write_text("file_name,caption\nlink/a.png,A cat.\n")
    assert unread_in(tmp_path).unlisted == ()
