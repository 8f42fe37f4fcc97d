import json
import re
from pathlib import Path

import pytest

from modalloy.data.build import SPLIT_ALIASES, Record, Reject, build_manifest, write_rejects
from modalloy.data.manifest import SPLITS
from modalloy.errors import DataError
from modalloy.files import sha256_of


def record(name: str, **changes) -> Record:
    return Record(**{"id": name, "path": f"{name}.png", "split": "train", "captions": (f"A {name}.",)} | changes)


def test_keeps_order_captions_and_checksums(tmp_path, picture):
    picture("b.png"), picture("a.png")
    records = [record("b", captions=(" One. ", "Two.", "Three."), family="f"), record("a", captions=())]
    manifest, rejects = build_manifest(iter(records), str(tmp_path))
    assert rejects == []
    assert manifest.root == tmp_path
    assert manifest.image_ids == ["b", "a"]
    assert manifest[0].captions == ("One.", "Two.", "Three.")
    assert manifest[0].family == "f"
    assert manifest[1].captions == ()
    assert manifest.check_files() == []
    assert manifest[1].sha256 == sha256_of(tmp_path / "a.png")


@pytest.mark.parametrize(("found", "split"), [*SPLIT_ALIASES.items(), (" Validation ", "val"), ("TEST", "test")])
def test_split_aliases(tmp_path, picture, found, split):
    picture("a.png")
    manifest, _ = build_manifest([record("a", split=found)], tmp_path)
    assert manifest[0].split == split
    assert split in SPLITS


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record("a"), record("b", id="a")], "two images have the id 'a' ('a.png' and 'b.png')"),
        ([record("a", split="holdout")], "image 'a': the split 'holdout' is unknown; use one of train, val"),
        ([record("a", id="a#1")], "the id 'a#1'"),
        ([record("a", path="../a.png")], "the path '../a.png'"),
        ([record("a", path="/a.png")], "the path '/a.png'"),
        ([], "lists no images"),
        ([record("gone")], "none of 1 images can be used; the first: "),
    ],
)
def test_structural_mistakes_are_errors(tmp_path, picture, records, message):
    picture("a.png"), picture("b.png")
    with pytest.raises(DataError, match=re.escape(message)):
        build_manifest(records, tmp_path)


def test_bad_images_are_rejected_alone(tmp_path, picture):
    picture("good.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    names = ["gone", "empty", "text", "good", "folder"]
    manifest, rejects = build_manifest(map(record, names), tmp_path)
    assert manifest.image_ids == ["good"]
    assert [reject.id for reject in rejects] == ["gone", "empty", "text", "folder"]
    for reject, reason in zip(rejects, ["doesn't exist", "is empty", "isn't a picture", "is a folder"], strict=True):
        assert f"{reject.id}.png {reason}" in reject.reason


def test_unreadable_image_is_rejected(tmp_path, picture, monkeypatch):
    picture("good.png"), picture("locked.png")
    opened = Path.open

    def denied(path, *arguments, **options):
        if path.name == "locked.png":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", denied)
    manifest, rejects = build_manifest([record("locked"), record("good")], tmp_path)
    assert manifest.image_ids == ["good"]
    assert "permission denied" in rejects[0].reason


def test_image_that_fails_while_it_is_hashed_is_rejected(tmp_path, picture, monkeypatch):
    picture("good.png"), picture("bad.png")

    def sha256(path):
        if path.name == "bad.png":
            raise OSError(5, "Input/output error")
        return sha256_of(path)

    monkeypatch.setattr("modalloy.data.build.sha256_of_image", sha256)
    manifest, rejects = build_manifest([record("bad"), record("good")], tmp_path)
    assert manifest.image_ids == ["good"]
    assert "Input/output error" in rejects[0].reason


def test_decoding_finds_truncated_pictures(tmp_path, picture):
    picture("good.png")
    data = picture("half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[:-30])
    records = [record("good"), record("half")]
    assert build_manifest(records, tmp_path)[1] == []
    manifest, rejects = build_manifest(records, tmp_path, decode=True)
    assert manifest.image_ids == ["good"]
    assert rejects[0].id == "half"


def test_bad_captions_are_rejected_alone(tmp_path, picture):
    picture("a.png"), picture("b.png")
    long = "word " * 10_000
    records = [
        record("a", captions=("", "caf\udce9", "café", long, " \n")),
        record("b", captions=("\t", "\udcff")),
    ]
    manifest, rejects = build_manifest(records, tmp_path)
    assert manifest.image_ids == ["a"]
    assert manifest.captions == ["café", long.strip()]
    assert rejects == [
        Reject("a", "caption 1 of 5 is blank"),
        Reject("a", "caption 2 of 5 isn't UTF-8"),
        Reject("a", "caption 5 of 5 is blank"),
        Reject("b", "caption 1 of 2 is blank"),
        Reject("b", "caption 2 of 2 isn't UTF-8"),
        Reject("b", "the image has no usable caption left"),
    ]


def test_an_image_with_blank_captions_is_taken_as_one_without(tmp_path, picture, caplog):
    picture("a.png"), picture("b.png"), picture("c.png")
    records = [record("a", captions=("",)), record("b", captions=(" ", "\t")), record("c", captions=("A cat.",))]
    manifest, rejects = build_manifest(records, tmp_path)
    assert [item.captions for item in manifest] == [(), (), ("A cat.",)]
    assert rejects == [
        Reject("a", "caption 1 of 1 is blank"),
        Reject("b", "caption 1 of 2 is blank"),
        Reject("b", "caption 2 of 2 is blank"),
    ]
    # Who opens the collection tells of the rejects.
    assert caplog.messages == []


def test_an_image_that_is_left_out_is_said_to_be_so_for_its_file_first(tmp_path):
    with pytest.raises(DataError, match=r"none of 1 images can be used; the first: .*gone.png doesn't exist"):
        build_manifest([record("gone", captions=(" ",))], tmp_path)


def test_file_name_that_is_not_utf8_is_rejected_and_can_be_written(tmp_path, picture):
    picture("good.png"), picture("caf\udce9.png")
    manifest, rejects = build_manifest([record("caf\udce9", captions=()), record("good")], tmp_path)
    assert manifest.image_ids == ["good"]
    assert rejects[0].id == "caf\\udce9"
    assert "isn't UTF-8" in rejects[0].reason
    written = json.loads(write_rejects(tmp_path / "manifest.jsonl", rejects).read_text())
    assert written == {"id": "caf\\udce9", "reason": rejects[0].reason}


def test_expected_sizes(tmp_path, picture):
    picture("a.png"), picture("b.png")
    records = [record("a", split="test"), record("b", split="test"), record("c", split="test")]
    assert len(build_manifest(records[:2], tmp_path, expected={"test": 2})[0]) == 2
    with pytest.raises(DataError, match=r"published test part has 3 images, but 2 can be used \(.*c: .*doesn't exist"):
        build_manifest(records, tmp_path, expected={"test": 3})
    with pytest.raises(DataError, match="published val part has 1 images, but 0 can be used;"):
        build_manifest(records[:2], tmp_path, expected={"val": 1})


def test_rejects_are_written_beside_the_manifest(tmp_path):
    rejects = [Reject("a", "ü"), Reject("b", "y")]
    path = write_rejects(tmp_path / "run" / "manifest.jsonl", rejects)
    assert path == tmp_path / "run" / "rejects.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"id": "a", "reason": "ü"}, {"id": "b", "reason": "y"}]
    write_rejects(tmp_path / "run" / "manifest.jsonl", [])
    assert path.read_text() == ""


def test_large_collections_show_a_bar(tmp_path, picture, capsys, monkeypatch):
    picture("a.png"), picture("b.png")
    build_manifest([record("a")], tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("modalloy.data.build.BAR_FROM", 2)
    build_manifest([record("a"), record("b")], tmp_path)
    assert "checking images" in capsys.readouterr().err
