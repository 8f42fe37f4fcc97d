import json
import logging
from pathlib import Path

import pytest

from modalloy.data.readers import read_collection
from modalloy.data.readers.extra_columns import ExtraColumns, read_numbers
from modalloy.data.readers.table import read_csv, read_jsonl
from modalloy.errors import DataError


def written(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def metadata(collection):
    return [dict(record.metadata) for record in collection.records]


def test_json_keeps_its_kinds(tmp_path):
    path = written(
        tmp_path / "rows.jsonl",
        {"path": "a.png", "camera": "X100", "year": 2020, "indoors": True, "rating": None, "note": ""},
        {"file_name": "b.png", "image": "not used", "caption_0": "B.", "family": "f", "f_number": 2.8},
    )
    assert metadata(read_jsonl(path)) == [{"camera": "X100", "year": 2020, "indoors": True}, {"f_number": 2.8}]
    assert metadata(read_jsonl(path))[0]["indoors"] is True


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["2020", "1999"], [2020, 1999]),
        (["2020", ""], [2020, None]),
        (["-1.5e3", "0"], [-1500.0, 0]),
        (["2020", "unknown"], ["2020", "unknown"]),
        (["007", "12"], ["007", "12"]),
        (["1234567890123456789", "1"], ["1234567890123456789", "1"]),
        (["nan", "1"], ["nan", "1"]),
        (["true", "false"], ["true", "false"]),
        (["", ""], [None, None]),
    ],
)
def test_csv_columns_are_numbers_or_texts(tmp_path, cells, expected):
    path = written(tmp_path / "rows.csv", "path,Year", *(f"{row}.png,{cell}" for row, cell in enumerate(cells)))
    assert [one.get("year") for one in metadata(read_csv(path))] == expected


def test_what_cannot_be_metadata_is_left_out_with_one_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = written(
        tmp_path / "rows.jsonl",
        {"path": "a", "boxes": [[1, 2]], "exif": {"iso": 100}, "camera model": "X", "year": 2020},
        {"path": "b", "boxes": [], "story": "x" * 5000, "year": float("inf")},
    )
    assert metadata(read_jsonl(path)) == [{"year": 2020}, {}]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{path}: left out of the metadata: 'boxes' (2: a list), ")
    for part in ("'exif' (1: an object)", "'camera model' (1: not named with", "'story' (1: a text of more than 4,096"):
        assert part in line
    assert line.endswith("and 1 more" if "'year'" not in line else ")")


def test_columns_of_captions_are_not_the_pictures(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    text = ("image,comment_number,comment,place", "a,0,A.,x", "a,1,B.,x", "b,0,C.,", "b,0,D.,y")
    assert metadata(read_csv(written(tmp_path / "rows.csv", *text))) == [{"place": "x"}, {"place": "y"}]
    assert "'comment_number' (2: different for captions of one picture)" in caplog.text


def test_true_is_not_one():
    columns, first = ExtraColumns(()), {"a": True}
    columns.join(first, {"a": 1.0})
    columns.finish([first], Path("rows"))
    assert first == {}


def test_no_numbers_where_there_is_nothing():
    rows = [{}, {"a": "x"}]
    read_numbers(rows)
    assert rows == [{}, {"a": "x"}]


def test_a_collection_keeps_its_metadata_with_one_kind_a_field(tmp_path, picture):
    for split, year in (("train", 2020), ("test", "unknown")):
        picture(f"{split}/a.png")
        written(tmp_path / split / "metadata.jsonl", {"file_name": "a.png", "text": "A.", "year": year, "f": 2})
    manifest, _ = read_collection(tmp_path)
    assert {item.id: dict(item.metadata) for item in manifest} == {
        "train:a.png": {"year": "2020", "f": 2},
        "test:a.png": {"year": "unknown", "f": 2},
    }
    manifest.save(tmp_path / "manifest.jsonl")
    assert read_collection(tmp_path)[0] == manifest


def test_a_misspelt_column_of_captions_is_still_an_error(tmp_path):
    with pytest.raises(DataError, match="did you mean 'captoin' to be 'caption'"):
        read_jsonl(written(tmp_path / "rows.jsonl", {"path": "a", "captoin": "A.", "year": 2020}))
    with pytest.raises(DataError, match="did you mean 'txt' to be 'text'"):
        read_csv(written(tmp_path / "rows.csv", "path,txt,year", "a,A.,2020"))
