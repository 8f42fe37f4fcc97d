import json
import re

import pytest

from modalloy.data.readers import read_collection
from modalloy.errors import DataError


def rows(folder, *values):
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(value)}\n" for value in values))


@pytest.fixture
def splits(tmp_path, picture):
    for name in ("train/1.png", "train/x/2.png", "validation/1.png", "validation/unlisted.png"):
        picture(name)
    rows(tmp_path / "train", {"file_name": "1.png", "text": "A."}, {"file_name": "./x/2.png", "text": "B.", "id": "2"})
    (tmp_path / "validation" / "metadata.csv").write_text("file_name,text\n1.png,C.\n1.png,D.\n")
    return tmp_path


def test_each_split_has_its_table(splits):
    manifest, rejects = read_collection(splits)
    assert rejects == [] and manifest.root == splits and manifest.check_files() == []
    assert [(item.id, item.path, item.split, item.captions) for item in manifest] == [
        ("train:1.png", "train/1.png", "train", ("A.",)),
        ("2", "train/x/2.png", "train", ("B.",)),
        ("validation:1.png", "validation/1.png", "val", ("C.", "D.")),
    ]


def test_one_split_alone(tmp_path, picture):
    picture("test/1.png"), picture("other/1.png")
    rows(tmp_path / "test", {"file_name": "1.png", "text": "A."})
    assert [(item.split, item.captions) for item in read_collection(tmp_path)[0]] == [("test", ("A.",))]


def test_a_row_may_name_its_split(splits):
    rows(splits / "train", {"file_name": "1.png", "text": "A.", "split": "test"})
    assert read_collection(splits)[0][0].split == "test"


def test_a_list_at_the_top_wins(splits):
    rows(splits, {"file_name": "train/1.png", "text": "Top."})
    assert read_collection(splits)[0].captions == ["Top."]


def test_a_split_without_a_table_or_with_two_is_named(splits, picture):
    (splits / "dev").mkdir()
    read_collection(splits)
    picture("test/1.png")
    with pytest.raises(
        DataError, match=r"test holds pictures \(1\.png, \.\.\.\) but no metadata\.jsonl, unlike .*train"
    ):
        read_collection(splits)
    rows(splits / "test", {"file_name": "1.png"})
    (splits / "test" / "metadata.csv").touch()
    with pytest.raises(DataError, match=re.escape("test holds both metadata.jsonl and metadata.csv; keep one")):
        read_collection(splits)
