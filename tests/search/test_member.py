"""Several members searched by their average, against plain averages of their whole scores."""

from dataclasses import replace

import pytest
import torch
from evaluation.naive import TableScores, assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from search.local_toys import member, side
from torch import Tensor

from modalloy.align import CrossAttention, LocalConfig, Tokens, cross_layer_similarity
from modalloy.align.cross_layer import CROSS, FOCAL
from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import rank_queries, rerank_ranks
from modalloy.search.hierarchical import HierarchicalSearch
from modalloy.search.hierarchy_config import HierarchyConfig
from modalloy.search.member import Member, Side
from modalloy.search.token_source import HeldTokens

DIRECTIONS = ["image_to_text", "text_to_image"]
LEVELS = ("high", "mid")


def random_member(images: int, captions: int, dim: int, attention: CrossAttention) -> Member:
    def one(items: int) -> Side:
        mask = torch.arange(3) < torch.randint(2, 4, (items, 1))
        return Side(
            torch.randn(items, dim), HeldTokens({level: Tokens(torch.randn(items, 3, dim), mask) for level in LEVELS})
        )

    return Member(one(images), one(captions), LocalConfig(dim, dim, dim, dim, dim=dim, attention=attention))


def two_members(images: int, captions: int) -> tuple[Member, Member]:
    """Of different widths and ways of attention, as HACAN's two models differ."""
    t2i = random_member(images, captions, 4, CrossAttention("t2i", "prob"))
    return t2i, random_member(images, captions, 6, CrossAttention("i2t", "equal"))


def averages(members) -> list[Tensor]:
    """Whole score matrices of the vectors, of the focal terms and of the others, averaged over the members."""
    parts = []
    for each in members:
        images, captions = (
            one.tokens.read(torch.arange(len(one.tokens)), LEVELS) for one in (each.images, each.captions)
        )
        local = [cross_layer_similarity(images, captions, each.local.attention, terms) for terms in (FOCAL, CROSS)]
        parts.append([each.images.vectors @ each.captions.vectors.T, *local])
    return [sum(found) / len(members) for found in zip(*parts, strict=True)]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("config", [HierarchyConfig(4, 2), HierarchyConfig(None, 3), HierarchyConfig(5, None)])
def test_each_stage_takes_the_mean_of_the_members_scores(direction, config):
    torch.manual_seed(4)
    members = two_members(7, 9)
    vectors, focal, cross = (each if direction == "image_to_text" else each.T for each in averages(members))
    found = HierarchicalSearch(*members, query_block=4, item_block=3)(direction, config)
    expected, candidates = vectors, torch.arange(vectors.shape[1]).expand(vectors.shape)
    added = (None, 0.2 * vectors + 0.8 * focal, 0.2 * vectors + 0.8 * focal + cross)
    counts = (config.focal_candidates, config.focal_candidates, config.cross_candidates)
    for stage, scores, count in zip(found, added, counts, strict=False):
        kept = candidates[:, :count]
        if scores is None:
            kept = expected.argsort(dim=1, descending=True)[:, :count]
        else:
            expected = scores
        order = expected.gather(1, kept).argsort(dim=1, descending=True)
        candidates = kept.gather(1, order)
        assert torch.equal(stage.candidates, candidates)
        torch.testing.assert_close(stage.scores, expected.gather(1, candidates), rtol=1e-4, atol=1e-5)


@settings(max_examples=10)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**20))
def test_deep_enough_every_rank_is_that_of_the_average(n_images, n_captions, seed):
    torch.manual_seed(seed)
    members, owner = two_members(n_images, n_captions), torch.randint(0, n_images, (n_captions,))
    vectors, focal, cross = averages(members)
    expected = rank_queries(TableScores(0.2 * vectors + 0.8 * focal + cross), owner)
    for direction in DIRECTIONS:
        last = HierarchicalSearch(*members)(direction, HierarchyConfig(None, 7))[-1]
        ranks = rerank_ranks(last.candidates, last.scores, owner, n_images, direction)
        assert_equal(ranks, getattr(expected, direction).tolist())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_average_of_an_encoder_with_itself_is_itself(tmp_path, direction):
    one = member(tmp_path, 7, 9)
    for config in (HierarchyConfig(4, 2), HierarchyConfig(None, None)):
        alone = HierarchicalSearch(one)(direction, config)
        for stage, expected in zip(HierarchicalSearch(one, one)(direction, config), alone, strict=True):
            assert stage.name == expected.name and torch.equal(stage.candidates, expected.candidates)
            assert torch.equal(stage.scores, expected.scores)


def test_the_candidates_are_the_averages_own():
    """One caption, three images: each member alone would let the truth, 0, fall out of its one candidate."""
    captions, one = torch.ones(1, 1), torch.ones(3, 1, dtype=torch.bool)

    def of(scores: list[float]) -> Member:
        def held(values: Tensor) -> HeldTokens:
            return HeldTokens({"high": Tokens(values[:, None], one[: len(values)])})

        vectors = torch.tensor(scores)[:, None]
        images, text = Side(vectors, held(torch.ones(3, 1))), Side(captions, held(captions))
        return Member(images, text, LocalConfig(1, None, 1, None, dim=1))

    members, config = (of([0.6, 0.9, 0.1]), of([0.6, 0.1, 0.9])), HierarchyConfig(1, None)
    alone = [HierarchicalSearch(each)("text_to_image", config)[-1].candidates.tolist() for each in members]
    assert alone == [[[1]], [[2]]]
    first, focal = HierarchicalSearch(*members)("text_to_image", config)
    assert focal.candidates.tolist() == [[0]] and first.scores.item() == pytest.approx(0.6)
    # Its score is that of 0.2 times the mean of the vectors', and 0.8 times a perfect local match.
    assert focal.scores.item() == pytest.approx(0.2 * 0.6 + 0.8)


def test_members_that_do_not_fit_are_refused(tmp_path):
    one, other = member(tmp_path / "one", 5, 6), member(tmp_path / "other", 5, 7)
    with pytest.raises(DataError, match=r"of the same items, got \(images, captions\) of \[\(5, 6\), \(5, 7\)\]"):
        HierarchicalSearch(one, other)
    with pytest.raises(ConfigError, match="at least one member, got none"):
        HierarchicalSearch()
    without = replace(one, local=replace(one.local, image_mid=None, text_mid=None))
    with pytest.raises(ConfigError, match="no cross-layer terms to re-rank by"):
        HierarchicalSearch(one, without)("text_to_image", HierarchyConfig(3, 2))


def test_bad_sides_are_refused(tmp_path):
    images = side(tmp_path, "image", 5)
    with pytest.raises(DataError, match="4 vectors for the tokens of 5 items"):
        Side(images.vectors[:4], images.tokens)
