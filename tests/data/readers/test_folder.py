import os
from pathlib import Path

import pytest

from modalloy.data.readers.collection import MAX_TEXT_BYTES
from modalloy.data.readers.folder import read_folder
from modalloy.errors import DataError


def records(folder):
    return {one.path: one for one in read_folder(folder).records}


def test_sidecars_give_a_caption_a_line(tmp_path, picture):
    # U+2028 and U+0085 separate lines for str.splitlines, but not in a caption file.
    picture("a.png").with_suffix(".txt").write_bytes("\ufeffA cat.\r\n\r\n A \u2028dog\u0085. \n".encode())
    assert [text.strip() for text in records(tmp_path)["a.png"].captions] == ["A cat.", "A \u2028dog\u0085."]


def test_images_without_captions_can_be_indexed(tmp_path, picture):
    picture("b.JPG"), picture("a.webp")
    (tmp_path / "README.txt").write_text("not a caption of any picture")
    found = read_folder(tmp_path)
    assert found.root == tmp_path
    assert [(one.id, one.captions, one.split) for one in found.records] == [
        ("a.webp", (), "train"),
        ("b.JPG", (), "train"),
    ]


def test_an_empty_sidecar_was_meant_to_hold_a_caption(tmp_path, picture):
    picture("a.png").with_suffix(".txt").write_text("\n \n")
    assert records(tmp_path)["a.png"].captions == ("",)


def test_other_encodings_reach_the_builder(tmp_path, picture):
    picture("a.png").with_suffix(".txt").write_bytes(b"caf\xe9\nplain\n")
    assert records(tmp_path)["a.png"].captions == ("caf\udce9", "plain")


def test_splits_come_from_top_folders(tmp_path, picture):
    for name in (
        "train/cats/a.png",
        "Validation/a.png",
        "test/a.png",
        "tune/a.png",
        "other/test/a.png",
        "a.png",
    ):
        picture(name)
    splits = {path: one.split for path, one in records(tmp_path).items()}
    assert splits == {
        "train/cats/a.png": "train",
        "Validation/a.png": "val",
        "test/a.png": "test",
        "tune/a.png": "tune",
        "other/test/a.png": "train",
        "a.png": "train",
    }
    by_path = {one.path: one.split for one in read_folder(tmp_path, split="test").records}
    assert by_path["a.png"] == by_path["other/test/a.png"] == "test"


def test_ids_are_paths(tmp_path, picture):
    picture("cats/a #1.png"), picture("cats/b.jpg"), picture("cats/b.png")
    assert [one.id for one in read_folder(tmp_path).records] == [
        "cats:a %231.png",
        "cats:b.jpg",
        "cats:b.png",
    ]


def test_hidden_files_are_passed_over(tmp_path, picture):
    picture(".cache/a.png"), picture("._b.png"), picture("__MACOSX/c.png"), picture("d.png")
    assert list(records(tmp_path)) == ["d.png"]


def test_unreadable_sidecar_is_named(tmp_path, picture, monkeypatch):
    picture("a.png").with_suffix(".txt").write_text("A cat.")

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(DataError, match=r"a\.txt can't be read \(Permission denied\)"):
        read_folder(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="nowhere isn't there"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no images;"):
        read_folder(tmp_path)
    (tmp_path / "IMG_1.HEIC").touch()
    with pytest.raises(DataError, match=r"holds no images but 1 \.heic \(not read; convert pictures to JPEG\);"):
        read_folder(tmp_path)


def test_a_huge_sidecar_is_not_read_and_leaves_its_picture_out(tmp_path, picture):
    picture("x/a.png").with_suffix(".txt").write_text("x" * (MAX_TEXT_BYTES + 1))
    with pytest.raises(DataError, match=r"none of 1 images can be used; the first: .*a\.txt has 1,048,577 bytes"):
        read_folder(tmp_path)
    picture("b.png").with_suffix(".txt").write_text("x" * MAX_TEXT_BYTES)
    collection = read_folder(tmp_path)
    assert [(one.path, len(one.captions[0])) for one in collection.records] == [("b.png", MAX_TEXT_BYTES)]
    (reject,) = collection.rejects
    assert reject.id == "x:a.png" and "at most 1,048,576 are allowed" in reject.reason


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_files_whose_names_cannot_be_ids_are_left_out_alone(tmp_path, picture):
    (tmp_path / "a").mkdir()
    for name in ("a/b.png", "a:b.png", "new\nline.png", "back\\slash.png", "good.png"):
        picture(name)
    found = read_folder(tmp_path)
    assert {one.path for one in found.records} == {"a/b.png", "good.png"}
    reasons = {reject.id: reject.reason for reject in found.rejects}
    assert "would have the id of 'a/b.png'. Rename" in reasons["a:b.png"]
    assert "control characters. Rename" in reasons["new\\nline.png"]
    assert "isn't inside the image folder" in reasons["back\\\\slash.png"]
