"""Second stages behind a searcher, against loops over pairs."""

import math
from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from search.indexes import coloured_index

from modalloy.data import Manifest
from modalloy.encoders import Encoder
from modalloy.errors import ConfigError, ImageError
from modalloy.index import Condition
from modalloy.search import Hit, Part, Query, Searcher
from modalloy.search.held_tensors import HeldTensors
from modalloy.search.rerank import Picture, rerank


class Greenness:
    """Scores a text's word with how green a picture is."""

    global_weight = 0.5

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], int]] = []

    def __call__(self, texts: Sequence[str], pictures: Sequence[Picture]) -> torch.Tensor:
        self.asked.append((list(texts), len(pictures)))
        scores = torch.full((len(texts), len(pictures)), torch.nan)
        for row, text in enumerate(texts):
            sign = next((i + 1 for i, word in enumerate(("green", "red", "blue")) if word in text), 0)
            for place, picture in enumerate(pictures):
                try:
                    scores[row, place] = sign * picture.open().getpixel((0, 0))[1] / 255
                except ImageError:
                    continue
        return scores


@pytest.fixture
def stage() -> Greenness:
    return Greenness()


@pytest.fixture
def searcher(encoder: Encoder, collection: Manifest, stage: Greenness) -> Searcher:
    return Searcher(coloured_index(encoder, collection), encoder, {"green": stage})


def test_the_best_are_put_in_another_order_and_the_rest_stays(searcher: Searcher, stage: Greenness) -> None:
    query = Query((Part(text="red"),), k=4, rerank="green", rerank_depth=2)
    first = searcher.search(Query(query.parts, k=4)).hits
    answer = searcher.search(query)
    assert stage.asked == [(["red"], 2)] and "rerank" in answer.milliseconds
    assert [hit.id for hit in answer.hits] == ["grey", "red", *(hit.id for hit in first[2:])]
    grey, red = answer.hits[:2]
    assert grey.rerank_score == pytest.approx(0.5 * grey.score + 2 * 128 / 255) and red.rerank_score == pytest.approx(
        0.5
    )
    assert [hit.rerank_score for hit in answer.hits[2:]] == [None, None]
    assert [hit.score for hit in answer.hits[2:]] == [hit.score for hit in first[2:]]


def test_no_more_is_looked_at_than_the_conditions_leave(searcher: Searcher, stage: Greenness) -> None:
    where = (Condition("letters", ">=", 4.0),)
    answer = searcher.search(Query((Part(text="red"),), k=4, where=where, rerank="green", rerank_depth=4))
    assert stage.asked == [(["red"], 3)] and answer.searched == 3
    assert [hit.id for hit in answer.hits] == ["green", "grey", "blue"]


def test_a_second_stage_looks_deeper_than_what_is_asked_for(searcher: Searcher, stage: Greenness) -> None:
    answer = searcher.search(Query((Part(text="red"),), k=1, rerank="green"))
    assert stage.asked == [(["red"], 4)] and [hit.id for hit in answer.hits] == ["green"]


def test_texts_count_by_their_weights_and_pictures_not_at_all(searcher: Searcher, stage: Greenness) -> None:
    picture = Image.new("RGB", (2, 2), (255, 0, 0))
    parts = (Part(text="green", weight=3.0), Part(image=picture), Part(text="blue", weight=-1.0))
    answer = searcher.search(Query(parts, k=4, rerank="green"))
    assert stage.asked == [(["green", "blue"], 4)]
    for hit in answer.hits:
        greenness = {"red": 0.0, "green": 1.0, "blue": 0.0, "grey": 128 / 255}[hit.id]
        assert hit.rerank_score == pytest.approx(0.5 * hit.score + (0.75 * 1 - 0.25 * 3) * greenness, abs=1e-5)


@pytest.mark.parametrize("size", [5e-324, 1e-50, 1e308])
def test_weights_of_any_size_are_weights(searcher: Searcher, size: float) -> None:
    expected, found = (
        searcher.search(Query((Part(text="green", weight=weight),), k=4, rerank="green")).hits for weight in (1.0, size)
    )
    assert found == expected


@pytest.mark.parametrize("by_id", [False, True])
def test_captions_are_scored_with_the_picture_asked_for(searcher: Searcher, stage: Greenness, by_id: bool) -> None:
    part = Part(like="green") if by_id else Part(image=Image.new("RGB", (2, 2), (0, 255, 0)))
    answer = searcher.search(Query((part,), target="text", k=3, rerank="green", rerank_depth=3))
    ((texts, pictures),) = stage.asked
    assert len(texts) == 3 and pictures == 1
    for hit in answer.hits:
        factor = {"green": 1, "red": 2, "blue": 3}[hit.picture_id]
        assert hit.rerank_score == pytest.approx(0.5 * hit.score + factor)


def test_a_caption_of_the_index_is_a_text(searcher: Searcher, stage: Greenness) -> None:
    searcher.search(Query((Part(like="red#0"),), rerank="green"))
    assert stage.asked == [(["a red square, 0"], 4)]


@pytest.mark.parametrize("harm", ["gone", "changed", "damaged"])
def test_a_picture_that_cannot_be_read_comes_behind(searcher: Searcher, collection: Manifest, harm: str) -> None:
    path = collection.absolute(collection[1])
    if harm == "gone":
        path.unlink()
    elif harm == "changed":
        Image.new("RGB", (8, 8), (0, 254, 0)).save(path)
    else:
        path.write_bytes(b"broken")
    hits = searcher.search(Query((Part(text="green"),), k=4, rerank="green", rerank_depth=3)).hits
    assert hits[0].id == "grey" and hits[2].id == "green" and hits[2].rerank_score is None
    assert [hit.rerank_score is None for hit in hits] == [False, False, True, True]


def test_a_picture_asked_for_that_is_gone_leaves_the_first_order(searcher: Searcher, collection: Manifest) -> None:
    collection.absolute(collection[1]).unlink()
    query = Query((Part(like="green"),), target="text", k=3)
    plain, second = (searcher.search(each).hits for each in (query, Query(query.parts, "text", 3, rerank="green")))
    assert plain == second


def test_what_cannot_be_compared_is_refused(searcher: Searcher, encoder: Encoder) -> None:
    picture = Image.new("RGB", (2, 2))
    with pytest.raises(ConfigError, match="to find pictures, give a text"):
        searcher.search(Query((Part(image=picture), Part(like="red")), rerank="green"))
    with pytest.raises(ConfigError, match="to find captions, give a picture"):
        searcher.search(Query((Part(text="red"),), target="text", rerank="green"))
    with pytest.raises(ConfigError, match="no second stage 'local' here, only 'green'"):
        searcher.search(Query((Part(text="red"),), rerank="local"))


def test_of_equal_scores_the_first_order_stays() -> None:
    hits = [Hit(name, score) for name, score in (("a", 0.2), ("b", 0.2), ("c", 0.9), ("d", 0.1))]
    found = rerank(hits, [1.0, 1.0, math.nan], 1.0)
    assert [hit.id for hit in found] == ["a", "b", "c", "d"]
    assert rerank([], [], 1.0) == []


def test_held_tensors_forget_what_was_not_used_for_longest() -> None:
    held = HeldTensors(held_bytes=12)
    for name in "abc":
        held[name] = torch.zeros(1)
    assert held.get("a") is not None
    held["d"] = torch.ones(1)
    assert held.get("b") is None and held.get("a") is not None and held.get("d").item() == 1
    held["a"] = torch.ones(1)
    assert held.get("a").item() == 1 and held.get("c") is not None
    held["large"] = torch.zeros(9)
    assert held.get("large") is None
    held["e"] = torch.zeros(3)
    assert held.get("e") is not None
