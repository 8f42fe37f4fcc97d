import json
import logging
import os
import re

import pytest

from modalloy.data.manifest import Manifest
from modalloy.data.readers import read_collection
from modalloy.errors import DataError

KARPATHY = {"images": [{"filename": "a.png", "split": "restval", "sentences": [{"raw": "A."}]}]}
FORMS = {
    "dataset_x.json": json.dumps(KARPATHY),
    "metadata.jsonl": '{"file_name": "a.png", "text": "A."}',
    "metadata.csv": "file_name,text\na.png,A.\n",
}


@pytest.fixture
def pictures(tmp_path, picture):
    picture("a.png")
    return tmp_path


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("by_folder", [True, False])
def test_finds_the_form(pictures, name, by_folder):
    (pictures / name).write_text(FORMS[name])
    manifest, rejects = read_collection(pictures if by_folder else pictures / name)
    assert rejects == []
    assert [(one.path, one.split, one.captions) for one in manifest] == [("a.png", "train", ("A.",))]
    assert manifest.check_files() == []


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("rows.tsv", "path\tcaption\na.png\tA.\n"),
        ("captions.txt", FORMS["metadata.csv"]),
        ("B.JSON", FORMS["dataset_x.json"]),
        ("rows.ndjson", FORMS["metadata.jsonl"]),
    ],
)
def test_suffixes(pictures, name, form):
    (pictures / name).write_text(form)
    assert read_collection(str(pictures / name))[0].captions == ["A."]


def test_folder_of_images(pictures):
    (pictures / "a.txt").write_text("A cat.\n")
    manifest, _ = read_collection(pictures, split="test")
    assert manifest.captions == ["A cat."]
    assert manifest[0].split == "test"


@pytest.mark.parametrize("elsewhere", [True, False])
def test_saved_manifest_is_taken_as_it_is(pictures, elsewhere):
    manifest, _ = read_collection(pictures)
    path = pictures / "runs" / "m.jsonl" if elsewhere else pictures / "manifest.jsonl"
    manifest.save(path)
    for given in [path] if elsewhere else [path, pictures]:
        loaded, rejects = read_collection(given)
        assert (loaded, rejects) == (manifest, [])
    assert read_collection(path, pictures)[0].root == pictures


def test_rows_with_a_checksum_among_other_keys_are_no_manifest(pictures):
    (pictures / "rows.jsonl").write_text('{"path": "a.png", "caption": "A.", "sha256": "?", "width": 4}\n')
    manifest, _ = read_collection(pictures / "rows.jsonl")
    assert isinstance(manifest, Manifest)
    assert manifest[0].sha256 != "?"


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".tar", ".token"])
def test_a_pipe_is_not_waited_for(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    with pytest.raises(DataError, match="is a device or pipe, not a file"):
        read_collection(tmp_path / f"pipe{suffix}")


def test_a_folder_called_like_a_tar_is_a_folder(tmp_path, picture):
    picture("test/a.tar/1.png")
    manifest, rejects = read_collection(tmp_path)
    assert [(one.path, one.split) for one in manifest] == [("test/a.tar/1.png", "test")]
    assert rejects == [] and manifest.check_files() == []


def test_split_and_image_folder_reach_the_reader(tmp_path, picture):
    picture("pictures/a.png")
    (tmp_path / "rows.csv").write_text("path,caption\na.png,A.\n")
    manifest, _ = read_collection(tmp_path / "rows.csv", tmp_path / "pictures", split="val")
    assert manifest[0].split == "val"
    assert manifest.root == tmp_path / "pictures"


def test_bad_images_and_captions_are_rejected_alone(pictures):
    (pictures / "metadata.csv").write_bytes(b"path,caption\na.png,A.\na.png,caf\xe9\na.png,\ngone.png,G.\n")
    manifest, rejects = read_collection(pictures)
    assert manifest.captions == ["A."]
    assert [reject.id for reject in rejects] == ["a.png", "a.png", "gone.png"]


def test_decode_reaches_the_builder(pictures, picture):
    path = picture("half.png")
    path.write_bytes(path.read_bytes()[:-30])
    assert read_collection(pictures)[1] == []
    assert [reject.id for reject in read_collection(pictures, decode=True)[1]] == ["half.png"]


def test_a_published_test_part_with_a_missing_image_is_an_error(tmp_path, picture):
    picture("0.png")
    images = [{"filename": f"{row}.png", "split": "test", "sentences": [{"raw": "A."}]} for row in range(1000)]
    (tmp_path / "dataset.json").write_text(json.dumps({"dataset": "flickr30k", "images": images}))
    with pytest.raises(DataError, match=r"published test part has 1,000 images, but 1 can be used .*1\.png doesn't"):
        read_collection(tmp_path / "dataset.json")


def test_unclear_or_unknown(pictures):
    with pytest.raises(DataError, match="nowhere isn't there"):
        read_collection(pictures / "nowhere")
    with pytest.raises(
        DataError, match=r"isn't a known collection; it should be a folder of pictures or tars, a manif"
    ):
        read_collection(pictures / "a.png")
    with pytest.raises(DataError, match="leave out the image folder"):
        read_collection(pictures, pictures)
    for name in ("dataset_a.json", "dataset_b.json"):
        (pictures / name).write_text(FORMS["dataset_x.json"])
    with pytest.raises(DataError, match=re.escape("several collections (dataset_a.json, dataset_b.json); name one")):
        read_collection(pictures)


def test_what_is_read_of_a_folder_with_several_lists_is_logged(pictures, caplog):
    caplog.set_level(logging.INFO)
    (pictures / "rejects.jsonl").touch()
    read_collection(pictures)
    assert caplog.messages == []
    (pictures / "captions.csv").write_text(FORMS["metadata.csv"])
    assert read_collection(pictures)[0].captions == []
    assert caplog.messages == [f"{pictures}: read by its pictures; not by captions.csv: name a list to read that one"]
    caplog.clear()
    for name, form in FORMS.items():
        (pictures / name).write_text(form)
    assert read_collection(pictures)[0].captions == ["A."]
    (message,) = caplog.messages
    assert "read by dataset_x.json; not by captions.csv, metadata.csv, metadata.jsonl:" in message
    caplog.clear()
    read_collection(pictures / "captions.csv")
    assert caplog.messages == []


def test_a_collection_without_images_is_named(tmp_path, monkeypatch, picture):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w3.json").write_text("[]")
    with pytest.raises(DataError, match=r"^w3\.json: the collection lists no images"):
        read_collection("w3.json")
    (tmp_path / "rows.csv").write_text("path,caption\nx/a.png,A.\n")
    hint = r"elsewhere, name their folder \(--images\)\.$"
    with pytest.raises(DataError, match=rf"^rows\.csv: none of 1 images .*doesn't exist; .*{hint}"):
        read_collection("rows.csv")
    picture("x/a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png is empty; replace the file\.$"):
        read_collection("rows.csv")
