import json
import re

import pytest

from modalloy.data.item import Item, is_item_line, item_of_json, json_of_item
from modalloy.errors import DataError

SHA = "0123456789abcdef" * 4
CAT = {"id": "cat", "path": "images/cat.png", "sha256": SHA, "split": "train", "captions": ("A cat.", "B.")}


def item(**changes) -> Item:
    return Item(**CAT | changes)


def test_caption_ids():
    assert item().caption_ids == ["cat#0", "cat#1"]
    assert item(captions=()).caption_ids == []


def test_cannot_be_changed():
    with pytest.raises(AttributeError):
        item().split = "test"


@pytest.mark.parametrize("family", [None, "pets"])
def test_json_comes_back(family):
    value = json.loads(json.dumps(json_of_item(item(family=family))))
    assert list(value) == ["id", "path", "sha256", "split", "captions", "family"]
    assert item_of_json(value) == item(family=family)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (json.dumps(CAT), True),
        (json.dumps(CAT | {"family": None}), True),
        (json.dumps(CAT | {"width": 3}), False),
        ('{"root": "/pictures"}', False),
        ("[1]", False),
        ("{oops", False),
        ("[" * 100_000, False),
    ],
)
def test_is_item_line(line, expected):
    assert is_item_line(line) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "the id ''"),
        ({"id": " "}, "the id ' '"),
        ({"id": "a#b"}, "the id 'a#b'"),
        ({"id": "a/b"}, "the id 'a/b'"),
        ({"id": "a\nb"}, "the id"),
        ({"id": "a\udce9"}, "the id"),
        ({"path": "/etc/passwd"}, "isn't inside the image folder"),
        ({"path": "../a.png"}, "isn't inside the image folder"),
        ({"path": "a/../../b.png"}, "isn't inside the image folder"),
        ({"path": "C:/a.png"}, "isn't inside the image folder"),
        ({"path": "..\\a.png"}, "isn't inside the image folder"),
        ({"path": ""}, "isn't inside the image folder"),
        ({"path": "."}, "isn't inside the image folder"),
        ({"path": "a\0.png"}, "isn't inside the image folder"),
        ({"path": "a\udce9.png"}, "isn't UTF-8"),
        ({"sha256": "abc"}, "item 'cat': sha256"),
        ({"sha256": SHA.upper()}, "item 'cat': sha256"),
        (
            {"split": "restval"},
            "item 'cat': split must be one of train, val, tune, test, unused, inputs, got 'restval'",
        ),
        ({"captions": ("A cat.", " \t")}, "item 'cat': caption 1 is blank"),
        ({"captions": ("caf\udce9",)}, "item 'cat': caption 0 isn't UTF-8"),
        ({"family": " "}, "item 'cat': a family"),
    ],
)
def test_item_that_cannot_be(changes, message):
    with pytest.raises(DataError, match=re.escape(message)):
        item(**changes)
