"""The stages against loops over all pairs, and recall where the truth falls out of a stage."""

from dataclasses import replace

import pytest
import torch
from evaluation.naive import TableScores, assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from search.local_toys import all_levels, branch, loop_terms, member, side

from modalloy.align import LocalConfig, Tokens, cross_layer_similarity
from modalloy.align.cross_layer import CROSS, FOCAL, Term
from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import rank_queries, rerank_ranks
from modalloy.search.hierarchical import Compared, HierarchicalSearch, Stage, refine
from modalloy.search.hierarchy_config import HierarchyConfig
from modalloy.search.member import Member, Side
from modalloy.search.token_source import HeldTokens

DIRECTIONS = ["image_to_text", "text_to_image"]


def loop_stages(queries, items, focal, cross, config):
    """Each stage's candidates and scores, query by query."""
    stages = ([], [], [])
    for query in range(len(queries.vectors)):
        vectors = {item: float(queries.vectors[query] @ vector) for item, vector in enumerate(items.vectors)}
        first = sorted(vectors, key=lambda item: -vectors[item])[: config.focal_candidates]
        scores = {
            item: config.global_weight * vectors[item] + config.focal_weight * focal[query, item] for item in first
        }
        second = sorted(scores, key=lambda item: -scores[item])
        second = second[: config.cross_candidates]
        last = {item: scores[item] + config.cross_weight * cross[query, item] for item in second}
        for stage, values in zip(stages, ({item: vectors[item] for item in first}, scores, last), strict=True):
            order = sorted(values, key=lambda item: -values[item])
            stage.append((order, [float(values[item]) for item in order]))
    return stages


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "config",
    [
        HierarchyConfig(4, 2),
        HierarchyConfig(None, 3),
        HierarchyConfig(5, 5, global_weight=0.0, focal_weight=2.0, cross_weight=0.5),
    ],
)
def test_stages_are_those_of_loops_at_any_block(tmp_path, direction, config):
    images, captions = side(tmp_path, "image", 7), side(tmp_path, "text", 9)
    levels = all_levels(images.tokens), all_levels(captions.tokens)
    focal, cross = loop_terms(*levels, FOCAL), loop_terms(*levels, CROSS)
    queries, items = (images, captions) if direction == "image_to_text" else (captions, images)
    if direction == "text_to_image":
        focal, cross = focal.T, cross.T
    expected = loop_stages(queries, items, focal, cross, config)
    for query_block, item_block in ((100, 100), (2, 3)):
        both = Member(images, captions, branch().config)
        search = HierarchicalSearch(both, query_block=query_block, item_block=item_block)
        found = search(direction, config)
        assert [stage.name for stage in found] == ["global", "focal", "cross-layer"]
        assert all(stage.seconds > 0 for stage in found)
        for stage, rows in zip(found, expected, strict=True):
            assert stage.candidates.tolist() == [order for order, _ in rows]
            torch.testing.assert_close(stage.scores, torch.tensor([values for _, values in rows]), rtol=1e-4, atol=1e-5)


@settings(max_examples=10)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 5), st.integers(0, 2**20))
def test_deep_enough_every_rank_is_that_of_the_whole_score(n_images, n_captions, block, seed):
    torch.manual_seed(seed)

    def random_side(items: int) -> Side:
        mask = torch.arange(3) < torch.randint(2, 4, (items, 1))
        levels = {level: Tokens(torch.randn(items, 3, 4), mask) for level in ("high", "mid")}
        return Side(torch.randn(items, 4), HeldTokens(levels))

    images, captions = random_side(n_images), random_side(n_captions)
    owner = torch.randint(0, n_images, (n_captions,))
    levels = [side.tokens.read(torch.arange(len(side.tokens)), ("high", "mid")) for side in (images, captions)]
    whole = 0.2 * images.vectors @ captions.vectors.T
    whole += 0.8 * cross_layer_similarity(*levels, terms=FOCAL) + cross_layer_similarity(*levels, terms=CROSS)
    expected = rank_queries(TableScores(whole), owner)
    both = Member(images, captions, LocalConfig(4, 4, 4, 4, dim=4))
    search = HierarchicalSearch(both, query_block=block, item_block=block)
    for direction in DIRECTIONS:
        last = search(direction, HierarchyConfig(None, 7))[-1]
        ranks = rerank_ranks(last.candidates, last.scores, owner, n_images, direction)
        assert_equal(ranks, getattr(expected, direction).tolist())


def crafted() -> HierarchicalSearch:
    """Four images and captions, each of one token: a local score is the cosine of two tokens.

    The tokens of a caption are those of its image, so that the last stage alone would find every truth. But in the
    vectors, caption 0 comes third at its image; and in the high level, caption 1 comes second at its own.
    """
    vectors, high = torch.eye(4), torch.eye(4)
    text_vectors, text_high = vectors.clone(), high.clone()
    text_vectors[0] = torch.tensor([0.5, 0.7, 0.6, 0.0])
    text_high[1] = torch.tensor([0.0, 0.6, 0.0, 0.8])
    text_vectors[1] = torch.tensor([0.0, 0.9, 0.0, 0.8])

    def tokens(levels: dict[str, torch.Tensor]) -> HeldTokens:
        mask = torch.ones(4, 1, dtype=torch.bool)
        return HeldTokens({level: Tokens(values[:, None], mask) for level, values in levels.items()})

    images = Side(vectors, tokens({"high": high, "mid": high}))
    captions = Side(text_vectors, tokens({"high": text_high, "mid": high}))
    return HierarchicalSearch(Member(images, captions, LocalConfig(4, 4, 4, 4, dim=4)))


def ranks(search: HierarchicalSearch, config: HierarchyConfig) -> list[list[float]]:
    return [
        rerank_ranks(stage.candidates, stage.scores, torch.arange(4), 4, "text_to_image").tolist()
        for stage in search("text_to_image", config)
    ]


def test_a_truth_that_falls_out_of_a_stage_is_a_miss_from_there_on():
    inf = torch.inf
    # Deep enough, nothing falls out: the vectors put truth 0 third, the focal stage truth 1 second, the last none.
    assert ranks(crafted(), HierarchyConfig(3, 2)) == [[3, 1, 1, 1], [1, 2, 1, 1], [1, 1, 1, 1]]
    # Truth 0 isn't among the first two. The original's evaluation would call it a hit at rank 1.
    assert ranks(crafted(), HierarchyConfig(2, 2)) == [[inf, 1, 1, 1], [inf, 2, 1, 1], [inf, 1, 1, 1]]
    # Truth 1 is among them, but not the best by focal attention.
    assert ranks(crafted(), HierarchyConfig(2, 1)) == [[inf, 1, 1, 1], [inf, 2, 1, 1], [inf, inf, 1, 1]]
    # The original's first stage, of all pairs, rescues truth 0 alone.
    assert ranks(crafted(), HierarchyConfig(None, 1))[-1] == [1, inf, 1, 1]


def test_without_mid_level_tokens_there_are_two_stages_or_a_clear_refusal(tmp_path):
    images, captions = side(tmp_path, "image", 5), side(tmp_path, "text", 6, levels=("high",))
    search = HierarchicalSearch(Member(images, captions, branch().config))
    for direction, name in zip(DIRECTIONS, ("items", "queries"), strict=True):
        with pytest.raises(
            ConfigError, match=rf"the {name} have tokens of the levels \['high'\].*cross_candidates to None"
        ):
            search(direction, HierarchyConfig(3, 2))
        assert [stage.name for stage in search(direction, HierarchyConfig(3, None))] == ["global", "focal"]
    without = replace(branch().config, image_mid=None, text_mid=None)
    with pytest.raises(ConfigError, match=r"no cross-layer terms .* set cross_candidates to None"):
        HierarchicalSearch(Member(images, captions, without))("text_to_image", HierarchyConfig(3, 2))


def test_a_mid_level_of_one_side_makes_the_terms_that_there_are(tmp_path):
    images, captions = side(tmp_path, "image", 5), side(tmp_path, "text", 6, levels=("high",))
    search = HierarchicalSearch(Member(images, captions, replace(branch().config, text_mid=None)))
    config = HierarchyConfig(5, 5, global_weight=0.0, focal_weight=1.0)
    image_levels = all_levels(images.tokens)
    text_levels = captions.tokens.read(torch.arange(6), ("high",))
    expected = loop_terms(image_levels, text_levels, (*FOCAL, Term("mid", "high")))
    last = search("text_to_image", config)[-1]
    found = torch.zeros(6, 5).scatter_(1, last.candidates, last.scores)
    torch.testing.assert_close(found, expected.T, rtol=1e-4, atol=1e-4)


def test_any_index_may_leave_places_empty(tmp_path):
    both = member(tmp_path, 5, 2)
    config = HierarchyConfig(3, 3, global_weight=0.0)
    first, *expected = HierarchicalSearch(both)("text_to_image", config)
    empty = torch.full((2, 1), -1)
    candidates = torch.cat([empty, first.candidates], dim=1)
    scores = torch.cat([torch.full((2, 1), -torch.inf), first.scores], dim=1)
    found = Stage("global", candidates, scores, 0.0)
    config = HierarchyConfig(cross_candidates=4, global_weight=0.0)
    compared = Compared(all_levels(both.captions.tokens), both.images.tokens, both.local)
    stages = refine([compared], found, "text_to_image", config)
    for stage, full in zip(stages, expected, strict=True):
        assert torch.equal(stage.candidates, torch.cat([full.candidates, empty], dim=1))
        assert (stage.scores[:, 3] == -torch.inf).all()


def test_an_item_without_a_vector_is_never_found(tmp_path):
    both = member(tmp_path, 5, 6)
    both.images.vectors[2] = torch.nan
    search = HierarchicalSearch(both)
    for count in (None, 5):
        stages = search("text_to_image", HierarchyConfig(count, 4))
        assert all(2 not in stage.candidates for stage in stages) and stages[0].candidates.shape == (6, 4)
    with pytest.raises(DataError, match="query 2 holds NaN"):
        search("image_to_text", HierarchyConfig())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_some_queries_are_answered_as_among_all(tmp_path, direction):
    both = member(tmp_path, 5, 6)
    both.images.vectors[2] = both.captions.vectors[2] = torch.nan
    search, some = HierarchicalSearch(both, query_block=2), torch.tensor([3, 0, 4])
    both.images.vectors[2] = both.captions.vectors[2] = 0.0
    every = HierarchicalSearch(both)(direction, HierarchyConfig(3, 2))
    for stage, whole in zip(HierarchicalSearch(both)(direction, HierarchyConfig(3, 2), some), every, strict=True):
        assert torch.equal(stage.candidates, whole.candidates[some])
        torch.testing.assert_close(stage.scores, whole.scores[some])
    # Of the others even a missing vector doesn't matter.
    assert len(search(direction, HierarchyConfig(3, 2), some)[-1].candidates) == 3


@pytest.mark.parametrize("level", ["high", "mid"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_item_whose_tokens_are_no_numbers_is_not_found_before_others(tmp_path, level, value):
    both, config = member(tmp_path, 5, 6), HierarchyConfig(5, 5)
    levels = all_levels(both.images.tokens)
    held = replace(both, images=Side(both.images.vectors, HeldTokens(levels)))
    _, focal, last = HierarchicalSearch(held)("text_to_image", config)
    levels[level].values[2, 0, 0] = value
    stages = HierarchicalSearch(held)("text_to_image", config)
    for found, whole in zip(stages[1:], (focal, last), strict=True):
        if level == "mid" and found.name == "focal":
            assert torch.equal(found.candidates, whole.candidates)
            continue
        others = whole.candidates != 2
        assert torch.equal(found.candidates[:, :4], whole.candidates[others].view(6, 4))
        torch.testing.assert_close(found.scores[:, :4], whole.scores[others].view(6, 4))
        assert (found.candidates[:, 4] == -1).all() and (found.scores[:, 4] == -torch.inf).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"focal_candidates": 0}, "focal_candidates must be at least 1, or None, got 0"),
        ({"cross_candidates": 0}, "cross_candidates must be at least 1"),
        ({"focal_candidates": 5, "cross_candidates": 6}, "must be at most focal_candidates, 5, got 6"),
        ({"global_weight": -0.1}, "global_weight must be 0 or more"),
        ({"focal_weight": 0.0}, "focal_weight must be above 0"),
        ({"cross_weight": float("nan")}, "cross_weight must be above 0, got nan"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        HierarchyConfig(**settings)


def test_bad_searches_are_refused(tmp_path):
    both = member(tmp_path, 5, 6)
    with pytest.raises(ConfigError, match="query_block 0"):
        HierarchicalSearch(both, query_block=0)
    with pytest.raises((ConfigError, TypeCheckError), match="sideways"):
        HierarchicalSearch(both)("sideways", HierarchyConfig())
