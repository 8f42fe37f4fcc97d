import math

import pytest
from PIL import Image

from modalloy.errors import ConfigError, DataError
from modalloy.search import Part, Query


@pytest.mark.parametrize("given", [{}, {"text": "a cat", "like": "a"}, {"text": "a", "image": "a.png", "like": "a"}])
def test_a_part_is_one_thing(given):
    with pytest.raises(ConfigError, match="one of a text, an image and an id to be like, got"):
        Part(**given)


@pytest.mark.parametrize("weight", [0.0, math.nan, math.inf])
def test_a_weight_is_a_number_other_than_zero(weight):
    with pytest.raises(ConfigError, match="a number other than 0"):
        Part(text="a cat", weight=weight)


@pytest.mark.parametrize("text", ["", " \n\t", "\udcff"])
def test_a_text_is_one_that_can_be_encoded(text):
    with pytest.raises(DataError, match="A text must"):
        Part(text=text)


def test_parts_have_labels():
    parts = [Part(text="a cat"), Part(like="p1"), Part(image=Image.new("RGB", (1, 1))), Part(image="a/b.png")]
    assert [part.label for part in parts] == ["a cat", "like p1", "picture", "a/b.png"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parts": ()}, "at least one part"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"rerank_depth": 0}, "rerank_depth must be at least 1, got 0"),
        ({"by": "clip", "rerank": "local"}, "leave out rerank and explain"),
        ({"by": "clip", "explain": True}, "leave out rerank and explain"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Query(**{"parts": (Part(text="a cat"),), **options})
