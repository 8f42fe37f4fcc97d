import json
import pickle
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalloy.data.item import Item, is_item_line, item_of_json, json_of_item
from modalloy.data.manifest import Manifest
from modalloy.data.metadata import MAX_META_TEXT, NO_METADATA, Metadata, check_field, kind_of, of_one_kind
from modalloy.errors import DataError

SHA = "0123456789abcdef" * 4
KNOWN = {"camera": "X100", "year": 2020.0, "indoors": False}

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
values = st.text(max_size=9) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()


def item(**changes) -> Item:
    return Item(**{"id": "cat", "path": "cat.png", "sha256": SHA, "split": "train", "captions": ("A cat.",), **changes})


@given(st.dictionaries(names, values, max_size=4))
def test_metadata_comes_back_from_json_and_from_other_processes(fields):
    one = item(metadata=fields)
    assert dict(one.metadata) == fields
    assert [type(value) for value in one.metadata.values()] == [type(value) for value in fields.values()]
    line = json.dumps(json_of_item(one))
    assert is_item_line(line)
    assert item_of_json(json.loads(line)) == one == pickle.loads(pickle.dumps(one))
    assert hash(one.metadata) == hash(Metadata(fields))


def test_it_cannot_be_changed():
    fields = dict(KNOWN)
    one = item(metadata=fields)
    fields["camera"] = "another"
    assert one.metadata["camera"] == "X100"
    with pytest.raises(TypeError):
        one.metadata["camera"] = "another"
    assert replace(one, split="test").metadata == KNOWN
    assert hash(one) != hash(item())


def test_an_item_without_any_is_written_as_ever(tmp_path):
    assert "metadata" not in json_of_item(item())
    assert item().metadata is NO_METADATA
    plain, rich = Manifest(tmp_path, (item(),)), Manifest(tmp_path, (item(metadata=KNOWN),))
    # What stored features hold on to.
    assert plain.fingerprint == rich.fingerprint
    for manifest in (plain, rich):
        manifest.save(tmp_path / "manifest.jsonl")
        assert Manifest.load(tmp_path / "manifest.jsonl") == manifest
    assert rich != plain


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"camera model": "X"}, "named with letters, digits and '_', got 'camera model'; rename it"),
        ({"": "X"}, "got ''"),
        ({"7up": "X"}, "got '7up'"),
        ({"é": "X"}, "got 'é'"),
        ({"a\n": "X"}, "got 'a\\n'"),
        ({"a": None}, "the metadata 'a' is null; expected a text, a number, true or false"),
        ({"a": [1]}, "is a list"),
        ({"a": {}}, "is an object"),
        ({"a": float("nan")}, "is a number that isn't finite"),
        ({"a": 2**53 + 1}, "is a whole number of more than 53 bits"),
        ({"a": "x" * (MAX_META_TEXT + 1)}, "is a text of more than 4,096 letters"),
        ({"a": "caf\udce9"}, "is a text that isn't UTF-8"),
    ],
)
def test_what_cannot_be_metadata(fields, message):
    with pytest.raises(DataError, match=re.escape(message)):
        Metadata(fields)
    value = json.loads(json.dumps(json_of_item(item()))) | {"metadata": fields}
    with pytest.raises(DataError, match=f"item 'cat': .*{re.escape(message)}"):
        item_of_json(value)


def test_a_line_whose_metadata_is_no_object_is_named():
    value = json.loads(json.dumps(json_of_item(item()))) | {"metadata": ["X"]}
    with pytest.raises(DataError, match="item 'cat': metadata must be an object, got a list"):
        item_of_json(value)


def test_field_names():
    check_field("Camera_2")
    with pytest.raises(DataError, match="rename it"):
        check_field("camera-2")


@given(st.lists(st.dictionaries(st.sampled_from("abc"), values, max_size=3), max_size=5))
def test_fields_of_one_kind(rows):
    result = of_one_kind(rows)
    assert [set(one) for one in result] == [set(row) for row in rows]
    for name in "abc":
        before = {kind_of(row[name]) for row in rows if name in row}
        after = {kind_of(one[name]) for one in result if name in one}
        assert after == (before if len(before) < 2 else {"text"})
        for row, one in zip(rows, result, strict=True):
            if len(before) == 1 and name in row:
                assert one[name] == row[name]
