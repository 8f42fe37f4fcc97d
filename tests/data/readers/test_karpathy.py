import json
import re

import pytest

from modalloy.data.readers.karpathy import read_karpathy
from modalloy.errors import DataError


def entry(name="1_a.jpg", split="train", captions=("A.", "B."), **more):
    return {"filename": name, "split": split, "sentences": [{"raw": text} for text in captions]} | more


def written(folder, images, dataset="mine", name="dataset.json"):
    path = folder / name
    path.write_text(json.dumps({"dataset": dataset, "images": images}))
    return path


def test_reads_ids_splits_and_captions(tmp_path):
    path = written(tmp_path, [entry(), entry("2_b.jpg", "restval", ["C."]), entry("3.jpg", "val", [])])
    collection = read_karpathy(path)
    assert collection.root == tmp_path
    assert [(one.id, one.path, one.split, one.captions) for one in collection.records] == [
        ("1_a", "1_a.jpg", "train", ("A.", "B.")),
        ("2_b", "2_b.jpg", "restval", ("C.",)),
        ("3", "3.jpg", "val", ()),
    ]


def test_image_folder(tmp_path):
    path = written(tmp_path, [entry()])
    (tmp_path / "images").mkdir()
    (tmp_path / "elsewhere").mkdir()
    assert read_karpathy(path).root == tmp_path / "images"
    assert read_karpathy(path, tmp_path / "elsewhere").root == tmp_path / "elsewhere"
    with pytest.raises(DataError, match=r"image folder .*nowhere isn't there"):
        read_karpathy(path, tmp_path / "nowhere")


def test_coco_subfolders_or_flat(tmp_path, picture):
    picture("images/val2014/a.jpg"), picture("images/b.jpg")
    images = [entry("a.jpg", filepath="val2014"), entry("b.jpg", filepath="val2014")]
    records = read_karpathy(written(tmp_path, images)).records
    assert [one.path for one in records] == ["val2014/a.jpg", "b.jpg"]
    assert [one.id for one in records] == ["a", "b"]


def listing(**sizes):
    return [entry(f"{split}{row}.jpg", split, ()) for split, size in sizes.items() for row in range(size)]


@pytest.mark.parametrize(
    ("dataset", "sizes", "message"),
    [
        ("flickr30k", {"test": 999}, "test part of flickr30k has 1,000 images, this one has 999;"),
        ("flickr30k", {"test": 1014}, "test part of flickr30k has 1,000 images, this one has 1,014;"),
        ("flickr30k", {"val": 1000, "test": 1000}, "val part of flickr30k has 1,014 images, this one has 1,000;"),
        ("flickr8k", {"train": 5, "val": 1000}, "train part of flickr8k has 6,000 images, this one has 5;"),
        ("MSCOCO", {"test": 1000}, "test part of coco has 5,000 images, this one has 1,000;"),
        ("coco", {"val": 5001}, "val part of coco has 5,000 images, this one has 5,001;"),
        ("coco", {"train": 5}, "has 113,287 images (or 82,783, 30,504), this one has 5; use the published file or, if"),
        ("coco", {"restval": 5}, "if it is another split, give the file another 'dataset' name."),
    ],
)
def test_parts_of_other_sizes_than_the_benchmarks_are_errors(tmp_path, dataset, sizes, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_karpathy(written(tmp_path, listing(**sizes), dataset))


@pytest.mark.parametrize(
    ("dataset", "sizes"),
    [
        ("flickr8k", {"val": 1000}),
        ("flickr30k", {"val": 1014, "test": 1000}),
        ("my own", {"train": 3, "test": 2}),
    ],
)
def test_published_parts_are_read_and_only_the_test_part_is_expected_whole(tmp_path, dataset, sizes):
    collection = read_karpathy(written(tmp_path, listing(**sizes), dataset))
    assert len(collection.records) == sum(sizes.values())
    assert collection.expected == ({"test": 1000} if dataset == "flickr30k" else {})


def test_the_file_name_tells_the_dataset_where_the_file_does_not(tmp_path):
    path = written(tmp_path, [entry(split="test")], None, "dataset_coco.json")
    with pytest.raises(DataError, match="test part of coco has 5,000"):
        read_karpathy(path)
    assert len(read_karpathy(written(tmp_path, [entry(split="test")], "part of it", "dataset_coco.json")).records) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "should hold a list under 'images'"),
        ('{"images": {}}', "should hold a list under 'images'"),
        ('{"images": [3]}', "images[0] isn't Karpathy's JSON: it should be an object, got a number"),
        (
            '{"images": [{"filename": "a.jpg", "sentences": []}]}',
            "images[0] isn't Karpathy's JSON: there is no 'split'",
        ),
        ('{"images": [{"split": "val", "sentences": []}]}', "images[0] isn't Karpathy's JSON: there is no 'filename'"),
        ('{"images": [{"filename": "a.jpg", "split": "val"}]}', "'sentences' should be a list of objects"),
        (
            '{"images": [{"filename": "a.jpg", "split": "val", "sentences": ["A."]}]}',
            "'sentences' should be a list of objects",
        ),
        (
            '{"images": [{"filename": "a.jpg", "split": "val", "sentences": [{}]}]}',
            "images[0].sentences[0] isn't Karpathy's JSON: there is no 'raw'",
        ),
        ('{"images": [{"filename": 3, "split": "val", "sentences": []}]}', "'filename' must be a text, got a number"),
        ('{"images": [{"filename": "a", "split": [], "sentences": []}]}', "'split' must be a text, got a list"),
        (
            '{"images": [{"filename": "a", "split": "val", "sentences": [{"raw": null}]}]}',
            "images[0].sentences[0]: 'raw' must be a text, got null",
        ),
    ],
)
def test_other_json(tmp_path, content, message):
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(DataError, match=re.escape(message)):
        read_karpathy(tmp_path / "d.json")


def test_bytes_that_are_not_utf8_reach_only_their_caption(tmp_path):
    text = json.dumps({"dataset": "x", "images": [entry(captions=["CAF", "B."])]})
    (tmp_path / "d.json").write_bytes(text.encode().replace(b"CAF", b"caf\xe9"))
    assert read_karpathy(tmp_path / "d.json").records[0].captions == ("caf\udce9", "B.")
