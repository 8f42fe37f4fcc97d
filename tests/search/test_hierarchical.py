"""The stages against loops over all pairs, and recall where the truth falls out of a stage."""

import pytest
import torch
from evaluation.naive import TableScores, assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from search.local_toys import all_levels, loop_terms, side

from modalloy.align import Tokens, cross_layer_similarity
from modalloy.align.cross_layer import CROSS, FOCAL, Term
from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import rank_queries, rerank_ranks
from modalloy.search.hierarchical import HierarchicalSearch, HierarchyConfig, Side, Stage, refine
from modalloy.search.token_source import HeldTokens

DIRECTIONS = ["image_to_text", "text_to_image"]


def loop_stages(queries, items, focal, cross, config):
    """Each stage's candidates and scores, query by query."""
    stages = ([], [], [])
    for query in range(len(queries.vectors)):
        vectors = {item: float(queries.vectors[query] @ vector) for item, vector in enumerate(items.vectors)}
        first = sorted(vectors, key=lambda item: -vectors[item])[: config.first]
        scores = {
            item: config.global_weight * vectors[item] + config.focal_weight * focal[query, item] for item in first
        }
        second = sorted(scores, key=lambda item: -scores[item])
        last = {item: scores[item] + config.cross_weight * cross[query, item] for item in second[: config.second]}
        for stage, values in zip(stages, ({item: vectors[item] for item in first}, scores, last), strict=True):
            order = sorted(values, key=lambda item: -values[item])
            stage.append((order, [float(values[item]) for item in order]))
    return stages


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "config",
    [
        HierarchyConfig(first=4, second=2),
        HierarchyConfig(first=None, second=3),
        HierarchyConfig(first=5, second=5, global_weight=0.0, focal_weight=2.0, cross_weight=0.5),
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
        search = HierarchicalSearch(images, captions, query_block=query_block, item_block=item_block)
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
    search = HierarchicalSearch(images, captions, query_block=block, item_block=block)
    for direction in DIRECTIONS:
        last = search(direction, HierarchyConfig(first=None, second=7))[-1]
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
    return HierarchicalSearch(images, Side(text_vectors, tokens({"high": text_high, "mid": high})))


def ranks(search: HierarchicalSearch, config: HierarchyConfig) -> list[list[float]]:
    return [
        rerank_ranks(stage.candidates, stage.scores, torch.arange(4), 4, "text_to_image").tolist()
        for stage in search("text_to_image", config)
    ]


def test_a_truth_that_falls_out_of_a_stage_is_a_miss_from_there_on():
    inf = torch.inf
    # Deep enough, nothing falls out: the vectors put truth 0 third, the focal stage truth 1 second, the last none.
    assert ranks(crafted(), HierarchyConfig(first=3, second=2)) == [[3, 1, 1, 1], [1, 2, 1, 1], [1, 1, 1, 1]]
    # Truth 0 isn't among the first two. The original's evaluation would call it a hit at rank 1.
    assert ranks(crafted(), HierarchyConfig(first=2, second=2)) == [[inf, 1, 1, 1], [inf, 2, 1, 1], [inf, 1, 1, 1]]
    # Truth 1 is among them, but not the best by focal attention.
    assert ranks(crafted(), HierarchyConfig(first=2, second=1)) == [[inf, 1, 1, 1], [inf, 2, 1, 1], [inf, inf, 1, 1]]
    # The original's first stage, of all pairs, rescues truth 0 alone.
    assert ranks(crafted(), HierarchyConfig(first=None, second=1))[-1] == [1, inf, 1, 1]


def test_without_mid_level_tokens_there_are_two_stages_or_a_clear_refusal(tmp_path):
    images, captions = side(tmp_path, "image", 5), side(tmp_path, "text", 6, levels=("high",))
    search = HierarchicalSearch(images, captions)
    for direction, name in zip(DIRECTIONS, ("items", "queries"), strict=True):
        with pytest.raises(ConfigError, match=rf"the {name} have tokens of the levels \['high'\].*second to None"):
            search(direction, HierarchyConfig(first=3, second=2))
        assert [stage.name for stage in search(direction, HierarchyConfig(first=3, second=None))] == ["global", "focal"]
    for terms, message in ((FOCAL, "no cross-layer terms .* set second to None"), (CROSS, "no focal term")):
        with pytest.raises(ConfigError, match=message):
            HierarchicalSearch(images, captions, terms=terms)("text_to_image", HierarchyConfig(first=3, second=2))


def test_a_mid_level_of_one_side_makes_the_terms_that_there_are(tmp_path):
    images, captions = side(tmp_path, "image", 5), side(tmp_path, "text", 6, levels=("high",))
    cross = Term("mid", "high")
    search = HierarchicalSearch(images, captions, terms=(*FOCAL, cross))
    config = HierarchyConfig(first=5, second=5, global_weight=0.0, focal_weight=1.0)
    image_levels = all_levels(images.tokens)
    text_levels = captions.tokens.read(torch.arange(6), ("high",))
    expected = loop_terms(image_levels, text_levels, (*FOCAL, cross))
    last = search("text_to_image", config)[-1]
    found = torch.zeros(6, 5).scatter_(1, last.candidates, last.scores)
    torch.testing.assert_close(found, expected.T, rtol=1e-4, atol=1e-4)


def test_any_index_may_leave_places_empty(tmp_path):
    images, captions = side(tmp_path, "image", 5), side(tmp_path, "text", 2)
    config = HierarchyConfig(first=3, second=3, global_weight=0.0)
    first, *expected = HierarchicalSearch(images, captions)("text_to_image", config)
    empty = torch.full((2, 1), -1)
    candidates = torch.cat([empty, first.candidates], dim=1)
    scores = torch.cat([torch.full((2, 1), -torch.inf), first.scores], dim=1)
    found = Stage("global", candidates, scores, 0.0)
    config = HierarchyConfig(second=4, global_weight=0.0)
    stages = refine(all_levels(captions.tokens), images.tokens, found, "text_to_image", config)
    for stage, full in zip(stages, expected, strict=True):
        assert torch.equal(stage.candidates, torch.cat([full.candidates, empty], dim=1))
        assert (stage.scores[:, 3] == -torch.inf).all()


def test_an_item_without_a_vector_is_never_found(tmp_path):
    images, captions = side(tmp_path, "image", 5), side(tmp_path, "text", 6)
    images.vectors[2] = torch.nan
    for first in (None, 5):
        stages = HierarchicalSearch(images, captions)("text_to_image", HierarchyConfig(first=first, second=4))
        assert all(2 not in stage.candidates for stage in stages) and stages[0].candidates.shape == (6, 4)
    with pytest.raises(DataError, match="query 2 holds NaN"):
        HierarchicalSearch(images, captions)("image_to_text", HierarchyConfig())


@pytest.mark.parametrize("level", ["high", "mid"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_item_whose_tokens_are_no_numbers_is_not_found_before_others(tmp_path, level, value):
    images, captions = side(tmp_path, "image", 5), side(tmp_path, "text", 6)
    levels = all_levels(images.tokens)
    config = HierarchyConfig(first=5, second=5)
    search = HierarchicalSearch(Side(images.vectors, HeldTokens(levels)), captions)
    _, focal, last = search("text_to_image", config)
    levels[level].values[2, 0, 0] = value
    stages = HierarchicalSearch(Side(images.vectors, HeldTokens(levels)), captions)("text_to_image", config)
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
        ({"first": 0}, "first must be at least 1 candidate, or None, got 0"),
        ({"second": 0}, "second must be at least 1"),
        ({"first": 5, "second": 6}, "second must be at most first, 5, got 6"),
        ({"global_weight": -0.1}, "global_weight must be 0 or more"),
        ({"focal_weight": 0.0}, "focal_weight must be above 0"),
        ({"cross_weight": float("nan")}, "cross_weight must be above 0, got nan"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        HierarchyConfig(**settings)


def test_bad_sides_are_refused(tmp_path):
    images = side(tmp_path, "image", 5)
    with pytest.raises(DataError, match="4 vectors for the tokens of 5 items"):
        Side(images.vectors[:4], images.tokens)
    with pytest.raises(ConfigError, match="query_block 0"):
        HierarchicalSearch(images, images, query_block=0)
    with pytest.raises((ConfigError, TypeCheckError), match="sideways"):
        HierarchicalSearch(images, images)("sideways", HierarchyConfig())
