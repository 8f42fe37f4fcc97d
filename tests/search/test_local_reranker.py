"""Hits of an index, put in the order of loops over pairs."""

import pytest
import torch
from search.local_toys import all_levels, branch, loop_terms, side

from modalloy.align import LocalConfig, Tokens
from modalloy.align.cross_layer import CROSS, FOCAL
from modalloy.errors import ConfigError, DataError
from modalloy.search import Hit
from modalloy.search.hierarchy_config import HierarchyConfig
from modalloy.search.local_reranker import LocalReranker
from modalloy.search.token_source import HeldTokens
from modalloy.search.top_k import top_k

LOCAL = branch().config


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
@pytest.mark.parametrize("second", [None, 3, 50])
def test_hits_come_in_the_order_of_loops(tmp_path, direction, second):
    images, captions = side(tmp_path, "image", 7), side(tmp_path, "text", 9)
    levels = all_levels(images.tokens), all_levels(captions.tokens)
    focal, cross = (loop_terms(*levels, terms) for terms in (FOCAL, CROSS))
    by_image = direction == "image_to_text"
    queries, items = (images, captions) if by_image else (captions, images)
    if not by_image:
        focal, cross = focal.T, cross.T
    ids = [f"item-{number}" for number in range(len(items.vectors))]
    scores, rows = top_k(queries.vectors[:3], items.vectors, 5, torch.ones(len(ids), dtype=torch.bool))
    hits = [
        [Hit(ids[row], score) for row, score in zip(*found, strict=True)]
        for found in zip(rows.tolist(), scores.tolist(), strict=True)
    ]
    hits[1] = hits[1][:2]  # an index may find fewer
    config = HierarchyConfig(None, second)
    asked = queries.tokens.read(torch.arange(3), ("high", "mid"))
    found = LocalReranker(items.tokens, ids, direction, config, LOCAL)(asked, hits)
    for query, (given, got) in enumerate(zip(hits, found, strict=True)):
        scores = {hit.id: 0.2 * hit.score + 0.8 * float(focal[query, ids.index(hit.id)]) for hit in given}
        order = sorted(scores, key=lambda id: -scores[id])[:second]
        if second is not None:
            scores = {id: scores[id] + float(cross[query, ids.index(id)]) for id in order}
            order.sort(key=lambda id: -scores[id])
        assert [hit.id for hit in got] == order
        assert [hit.score for hit in got] == pytest.approx([scores[id] for id in order], abs=1e-5)


def test_what_a_hit_shows_stays(tmp_path):
    items = side(tmp_path, "image", 2).tokens
    asked = side(tmp_path / "queries", "text", 1).tokens.read(torch.arange(1), ("high",))
    reranker = LocalReranker(items, ["a", "b"], "text_to_image", HierarchyConfig(cross_candidates=None), LOCAL)
    (hit,) = reranker(asked, [[Hit("b", 0.5, path="b.png", captions=("A boat.",))]])[0]
    assert (hit.id, hit.path, hit.caption) == ("b", "b.png", "A boat.") and hit.score != 0.5


@pytest.mark.parametrize("second", [None, 1])
def test_queries_without_hits_stand_beside_others(tmp_path, second):
    items = side(tmp_path, "image", 3).tokens
    asked = side(tmp_path / "queries", "text", 3).tokens.read(torch.arange(3), ("high", "mid"))
    reranker = LocalReranker(items, ["a", "b", "c"], "text_to_image", HierarchyConfig(None, second), LOCAL)
    hits = [Hit("b", 0.5), Hit("c", 0.4)]
    first, none, last = reranker(asked, [hits, [], hits[:1]])
    assert none == [] and [hit.id for hit in last] == ["b"]
    alone = reranker({level: tokens[torch.tensor([0])] for level, tokens in asked.items()}, [hits])[0]
    assert [hit.id for hit in first] == [hit.id for hit in alone] and len(first) == (second or 2)
    assert reranker(asked, [[], [], []]) == [[], [], []]
    assert reranker({level: tokens[torch.tensor([], dtype=torch.long)] for level, tokens in asked.items()}, []) == []


def test_a_hit_without_tokens_matches_nothing_locally():
    def words(*rows: list[float]) -> dict[str, Tokens]:
        values = torch.tensor(rows)[:, None]
        return {"high": Tokens(values, values.any(2))}

    items = HeldTokens(words([1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]))
    local = LocalConfig(2, None, 2, None, dim=2)
    reranker = LocalReranker(items, ["same", "none", "opposite"], "text_to_image", HierarchyConfig(None, None), local)
    hits = [Hit(id, 0.5) for id in ("opposite", "none", "same")]
    (found,) = reranker(words([1.0, 0.0]), [hits])
    assert [(hit.id, round(hit.score, 4)) for hit in found] == [("same", 0.9), ("none", 0.1), ("opposite", -0.7)]
    # Nor does a query without tokens: the index's order stays.
    (found,) = reranker(words([0.0, 0.0]), [hits])
    assert [(hit.id, round(hit.score, 4)) for hit in found] == [(hit.id, 0.1) for hit in hits]


def test_bad_arguments_are_refused(tmp_path):
    items = side(tmp_path, "image", 2).tokens
    asked = side(tmp_path / "queries", "text", 1).tokens.read(torch.arange(1), ("high",))
    with pytest.raises(DataError, match="3 ids for the tokens of 2 items"):
        LocalReranker(items, ["a", "b", "c"], "text_to_image", HierarchyConfig(), LOCAL)
    two_stages = LocalReranker(items, ["a", "b"], "text_to_image", HierarchyConfig(cross_candidates=None), LOCAL)
    with pytest.raises(DataError, match="1 hits have no tokens here, the first is 'c'"):
        two_stages(asked, [[Hit("c", 0.5)]])
    with pytest.raises(DataError, match=r"hits for 2 queries, but tokens of \[1\]"):
        two_stages(asked, [[], []])
    with pytest.raises(ConfigError, match="the queries have tokens of the levels"):
        LocalReranker(items, ["a", "b"], "text_to_image", HierarchyConfig(), LOCAL)(asked, [[Hit("a", 0.5)]])
