import io
import json
import re
import tarfile

import pytest
from PIL import Image

from modalloy.data.build import Reject, write_rejects
from modalloy.data.doctor import check_collection
from modalloy.data.readers import read_collection
from modalloy.data.readers.collection import MAX_TEXT_BYTES
from modalloy.data.readers.tars import read_tars
from modalloy.errors import DataError


def png(colour=0):
    content = io.BytesIO()
    Image.new("RGB", (4, 3), (colour, 0, 0)).save(content, "png")
    return content.getvalue()


def shard(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            content = content if isinstance(content, bytes) else content.encode()
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def captions(folder, members):
    """The captions of the only sample."""
    (record,) = read_tars([shard(folder / "a.tar", {"1.png": png(), **members})], folder).records
    return record.captions


def test_samples_are_members_with_the_same_key(tmp_path):
    members = {
        "./x/1.png": png(1),
        "./x/1.txt": "A cat.\n",
        "x/1.seg.png": png(),
        "x/1.cls": "3",
        "2.5.json": "not the caption of 2.JPG",
        "2.JPG": png(2),
        "2.json": json.dumps({"captions": ["B.", "C."], "width": 4}),
        "3.webp": png(3),
        "._3.webp": "hidden",
        "README": "?",
    }
    collection = read_tars([shard(tmp_path / "000.tar", members)], tmp_path, "tune")
    assert collection.root == tmp_path
    assert [(one.id, one.path, one.split, one.captions) for one in collection.records] == [
        ("000.tar:x:1.png", "000.tar/x/1.png", "tune", ("A cat.",)),
        ("000.tar:2.JPG", "000.tar/2.JPG", "tune", ("B.", "C.")),
        ("000.tar:3.webp", "000.tar/3.webp", "tune", ()),
    ]
    assert collection.rejects == ()


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"1.txt": "A.\n", "1.json": '{"caption": "A."}'}, ("A.",)),
        ({"1.txt": "A.\n\nB.\n", "1.json": '{"caption": "B."}'}, ("A.", "B.")),
        ({"1.txt": "\n \n"}, ("",)),
        ({"1.txt": "A.", "1.json": '{"captions": ["B.", "A."]}'}, ("A.", "B.")),
        ({"1.json": '{"text": "A."}'}, ("A.",)),
        ({"1.json": '{"caption": null, "texts": ["A."]}'}, ("A.",)),
        ({"1.json": '{"width": 3}'}, ()),
        ({"1.txt": ""}, ("",)),
        ({"1.txt": b"caf\xe9"}, ("caf\udce9",)),
        ({"1.json": b'{"captions": ["caf\xe9", "B."]}'}, ("caf\udce9", "B.")),
    ],
)
def test_captions(tmp_path, members, expected):
    assert captions(tmp_path, members) == expected


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"1.json": "{"}, "a.tar/1.json: not JSON"),
        ({"1.json": "[]"}, "a.tar/1.json: it must hold an object, got a list"),
        ({"1.json": '{"caption": 3}'}, "a.tar/1.json: captions must be a text or a list of texts, got a number"),
        ({"1.json": '{"captions": [null]}'}, "got a list with null"),
        ({"1.txt": "x" * (MAX_TEXT_BYTES + 1)}, "a.tar/1.txt has 1,048,577 bytes; at most 1,048,576"),
    ],
)
def test_a_sample_with_a_bad_caption_file_is_left_out_alone(tmp_path, members, reason):
    tar = shard(tmp_path / "a.tar", {"1.png": png(), **members, "2.png": png()})
    collection = read_tars([tar], tmp_path)
    assert [one.path for one in collection.records] == ["a.tar/2.png"]
    (reject,) = collection.rejects
    assert reject.id == "a.tar:1.png" and reason in reject.reason


def test_samples_without_a_picture_or_with_two(tmp_path):
    tar = shard(tmp_path / "a.tar", {"1.txt": "A.", "2.png": png(1), "2.jpg": png(2), "2.txt": "B."})
    collection = read_tars([tar], tmp_path)
    assert [(one.path, one.captions) for one in collection.records] == [("a.tar/2.png", ("B.",))]
    assert collection.rejects == (
        Reject("a.tar/1", "the sample has no picture"),
        Reject("a.tar/2.jpg", "is a second picture of its sample"),
    )


def test_a_picture_with_a_dot_in_its_name_is_no_sample_and_is_named(tmp_path):
    members = {"1.png": png(1), "1.mask.png": png(2), "10.15.png": png(3), "10.15.txt": "A."}
    collection = read_tars([shard(tmp_path / "a.tar", members)], tmp_path)
    assert [one.path for one in collection.records] == ["a.tar/1.png"]
    assert collection.rejects == (Reject("a.tar/10", "the sample has no picture"),)


def test_names_that_are_not_utf8_are_left_out_and_can_be_written(tmp_path):
    members = {"caf\udce9.png": png(), "caf\udce9/x.txt": "A.", "caf\udce9/y.png": png(), "caf\udce9/y.json": "{"}
    shard(tmp_path / "a.tar", {**members, "1.png": png()})
    manifest, rejects = read_collection(tmp_path / "a.tar")
    assert manifest.image_ids == ["a.tar:1.png"]
    assert [reject.id for reject in rejects] == ["a.tar/caf\\udce9/x", "a.tar:caf\\udce9:y.png", "a.tar:caf\\udce9.png"]
    assert len(write_rejects(tmp_path / "manifest.jsonl", rejects).read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "split"),
    [("train-000.tar", "train"), ("flickr_val_01.tar", "val"), ("test/000.tar", "test"), ("x/000.tar", "tune")],
)
def test_splits_come_from_names(tmp_path, name, split):
    tar = shard(tmp_path / name, {"1.png": png()})
    assert read_tars([tar], tmp_path, "tune").records[0].split == split


def test_a_damaged_tar_gives_what_is_whole_and_the_others_are_read(tmp_path):
    cut = shard(tmp_path / "a.tar", {"1.png": png(1), "1.txt": "A.", "2.png": png(2)})
    # Each member takes a header and a block; the cut is in the third's data.
    cut.write_bytes(cut.read_bytes()[: 512 * 5 + 20])
    (tmp_path / "b.tar").write_bytes(b"no tar")
    whole = shard(tmp_path / "c.tar", {"../3.png": png(3), "4.png": png(4)})
    collection = read_tars([cut, tmp_path / "b.tar", whole], tmp_path)
    assert [one.path for one in collection.records] == ["a.tar/1.png", "c.tar/4.png"]
    rejects = {reject.id: reject.reason for reject in collection.rejects}
    assert list(rejects) == ["a.tar/2.png", "a.tar", "b.tar", "c.tar/../3.png"]
    assert "cut off" in rejects["a.tar/2.png"] and "damaged" in rejects["b.tar"]


def test_nothing_that_can_be_used_is_an_error(tmp_path):
    with pytest.raises(
        DataError, match=r"a\.tar holds no sample with a picture .*first of .*: a\.tar/1: the sample has"
    ):
        read_tars([shard(tmp_path / "a.tar", {"1.txt": "A."})], tmp_path)
    tars = [shard(tmp_path / "a.tar", {}), shard(tmp_path / "b.tar", {})]
    with pytest.raises(DataError, match=r": 2 tars hold no sample .*can be used\.$"):
        read_tars(tars, tmp_path)


@pytest.mark.parametrize("given", ["", "{train,val}-{0..1}.tar"])
def test_a_folder_or_a_pattern_of_tars_is_one_collection(tmp_path, given):
    for number, name in enumerate(("train-0", "train-1", "val-0", "val-1")):
        shard(tmp_path / f"{name}.tar", {"1.png": png(number), "1.txt": f"{name}.", "2.png": b"?", "2.txt": "?"})
    manifest, rejects = read_collection(tmp_path / given)
    assert [(item.path, item.split, item.captions) for item in manifest] == [
        ("train-0.tar/1.png", "train", ("train-0.",)),
        ("train-1.tar/1.png", "train", ("train-1.",)),
        ("val-0.tar/1.png", "val", ("val-0.",)),
        ("val-1.tar/1.png", "val", ("val-1.",)),
    ]
    assert [reject.id for reject in rejects] == [
        f"{name}.tar:2.png" for name in ("train-0", "train-1", "val-0", "val-1")
    ]
    assert not [problem for problem in check_collection(manifest) if problem.severity == "error"]
    manifest.save(tmp_path / "manifest.jsonl")
    assert read_collection(tmp_path)[0] == manifest


def test_one_tar_and_tars_in_subfolders(tmp_path):
    tar = shard(tmp_path / "val" / "000.tar", {"1.png": png()})
    assert [(item.path, item.split) for item in read_collection(tmp_path)[0]] == [("val/000.tar/1.png", "val")]
    assert read_collection(tar)[0].root == tar.parent


def test_tars_that_cannot_be_read_as_one_collection(tmp_path, picture):
    shard(tmp_path / "0.tar", {"1.png": png()})
    for name, message in (
        ("{0..1}.tar", r"1\.tar, which .*\{0\.\.1\}\.tar names, isn't there"),
        ("{0.tar", "isn't there"),
    ):
        with pytest.raises(DataError, match=message):
            read_collection(tmp_path / name)
    with pytest.raises(DataError, match="so leave out the image folder"):
        read_collection(tmp_path / "0.tar", tmp_path)
    for name in ("0.tar.gz", "0.tgz", "0.tar.zst"):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=re.escape(f"{name} is compressed, so that it can't be read in place")):
            read_collection(tmp_path / name)
    picture("a.png")
    with pytest.raises(DataError, match=r"holds both tars \(0\.tar, \.\.\.\) and pictures \(a\.png"):
        read_collection(tmp_path)
