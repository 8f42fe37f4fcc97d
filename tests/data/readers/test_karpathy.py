import json
import re

import pytest

from modalloy.data.readers.karpathy import read_karpathy
from modalloy.errors import DataError


def entry(name="1_a.jpg", split="train", captions=("A.", "B."), **more):
    return {"filename": name, "split": split, "sentences": [{"raw": text} for text in captions]} | more


def written(folder, images, dataset="flickr8k", name="dataset.json"):
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
    records = read_karpathy(written(tmp_path, images, "coco")).records
    assert [one.path for one in records] == ["val2014/a.jpg", "b.jpg"]
    assert [one.id for one in records] == ["a", "b"]


@pytest.mark.parametrize(
    ("dataset", "found", "wanted"),
    [("flickr30k", 999, 1000), ("coco", 1000, 5000), ("coco", 1, 5000), ("flickr30k", 1014, 1000)],
)
def test_test_part_of_another_size_is_an_error(tmp_path, dataset, found, wanted):
    path = written(tmp_path, [entry(f"{row}.jpg", "test") for row in range(found)], dataset)
    with pytest.raises(DataError, match=f"Karpathy test part of {dataset} has {wanted:,} images.* {found:,};"):
        read_karpathy(path)


def test_the_published_test_part_is_expected_later_too(tmp_path):
    images = [entry(f"{row}.jpg", "test") for row in range(1000)] + [entry("t.jpg")]
    assert read_karpathy(written(tmp_path, images, "flickr30k")).expected == {"test": 1000}
    assert read_karpathy(written(tmp_path, images, "my own")).expected == {}
    assert read_karpathy(written(tmp_path, images, "flickr8k")).expected == {}
    assert read_karpathy(written(tmp_path, [entry()], "coco")).expected == {}


def test_the_file_name_tells_the_dataset_where_the_file_does_not(tmp_path):
    path = written(tmp_path, [entry(split="test")], None, "dataset_coco.json")
    with pytest.raises(DataError, match="dataset_coco has 5,000"):
        read_karpathy(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "should hold a list under 'images'"),
        ('{"images": {}}', "should hold a list under 'images'"),
        ('{"images": [3]}', "images[0] isn't Karpathy's JSON"),
        (
            '{"images": [{"filename": "a.jpg", "sentences": []}]}',
            "images[0] isn't Karpathy's JSON (KeyError('split'))",
        ),
        ('{"images": [{"filename": "a.jpg", "split": "val", "sentences": [{}]}]}', "KeyError('raw')"),
        (
            '{"images": [{"filename": 3, "split": "val", "sentences": []}]}',
            "images[0]: filename, split and each",
        ),
        (
            '{"images": [{"filename": "a", "split": "val", "sentences": [{"raw": null}]}]}',
            "each caption must be",
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
