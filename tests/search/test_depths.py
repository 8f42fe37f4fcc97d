"""Numbers of candidates chosen by brute force, and what is told of each."""

import json
from functools import cache

import pytest
import torch
from search.local_toys import branch, side
from torch.nn.functional import normalize

from modalloy.align import LocalConfig, Tokens
from modalloy.errors import ConfigError
from modalloy.search.depth import Fold, measure_depth
from modalloy.search.depths import DepthLadder, choose_depths
from modalloy.search.hierarchical import HierarchicalSearch
from modalloy.search.hierarchy_config import HierarchyConfig
from modalloy.search.member import Member, Side
from modalloy.search.token_source import HeldTokens

ITEMS = 60


@cache
def noisy() -> list[Fold]:
    """Pairs that vectors hardly find, high-level tokens better, and those of both levels best."""
    torch.manual_seed(0)
    truth = torch.randn(ITEMS, 16)

    def seen(noise: float) -> torch.Tensor:
        return normalize(truth + noise * torch.randn(truth.shape), dim=1)

    def one() -> Side:
        mask = torch.ones(ITEMS, 1, dtype=torch.bool)
        return Side(seen(1.2), HeldTokens({level: Tokens(seen(0.7)[:, None], mask) for level in ("high", "mid")}))

    search = HierarchicalSearch(Member(one(), one(), LocalConfig(16, 16, 16, 16, dim=16)))
    return [Fold(search, torch.arange(ITEMS))]


@cache
def recalls(direction: str, focal: int, cross: int) -> dict[str, float]:
    found = measure_depth(noisy(), direction, HierarchyConfig(focal, cross), timed=1).final
    return found.to_dict() | {"rsum": found.rsum}


def brute_force(direction: str, ladder: DepthLadder, good) -> tuple[int, int] | None:
    """The least numbers of candidates whose recall is good, if there are any."""

    def final(focal: int, cross: int) -> dict[str, float]:
        return recalls(direction, focal, min(focal, cross))

    most = ladder.cross_candidates[-1]
    best = final(ladder.focal_candidates[-1], most)
    focal = next((focal for focal in ladder.focal_candidates if good(final(focal, most), best)), None)
    if focal is None:
        return None
    return focal, next(min(focal, cross) for cross in ladder.cross_candidates if good(final(focal, cross), best))


def counts(depth) -> tuple[int, int]:
    return depth.config.focal_candidates, depth.config.cross_candidates


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
@pytest.mark.parametrize(
    ("loss", "measures"), [(0.0, ("R@1",)), (2.0, ("R@1", "R@10")), (6.0, ("rsum",)), (99.0, ("R@1",))]
)
def test_the_choice_is_that_of_brute_force(direction, loss, measures):
    ladder = DepthLadder((1, 5, 10, 20, 40), (2, 5, 10, 20), loss, measures=measures)
    choice = choose_depths(noisy(), direction, ladder, timed=1)
    expected = brute_force(
        direction, ladder, lambda found, best: all(found[each] >= best[each] - loss - 1e-9 for each in measures)
    )
    assert counts(choice.chosen) == expected
    assert choice.reached and choice.deepest.config == HierarchyConfig(40, 20)
    measured = [counts(depth) for depth in choice.depths]
    assert measured == sorted(set(measured)) and {(each, min(each, 20)) for each in ladder.focal_candidates} <= set(
        measured
    )


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
@pytest.mark.parametrize(
    ("recall", "measures"), [(60.0, ("R@10",)), (75.0, ("R@1", "R@10")), (250.0, ("rsum",)), (1.0, ("R@1",))]
)
def test_a_wanted_recall_is_reached_at_least_cost_as_by_brute_force(direction, recall, measures):
    ladder = DepthLadder((1, 5, 10, 20, 40), (2, 5, 10, 20), recall=recall, measures=measures)
    choice = choose_depths(noisy(), direction, ladder, timed=1)
    expected = brute_force(
        direction, ladder, lambda found, best: all(found[each] >= recall - 1e-9 for each in measures)
    )
    assert expected is not None and counts(choice.chosen) == expected and choice.reached
    assert choice.to_dict()["recall"] == recall and choice.to_dict()["loss"] is None


def test_where_no_depth_reaches_the_recall_the_choice_is_the_deepest_and_says_so():
    ladder = DepthLadder((1, 5, 10), (2, 5), recall=(100.0, 1.0), measures=("R@1",))
    failed, easy = (
        choose_depths(noisy(), direction, ladder, timed=1) for direction in ("image_to_text", "text_to_image")
    )
    assert not failed.reached and failed.chosen is failed.deepest and counts(failed.chosen) == (10, 5)
    assert failed.to_dict()["reached"] is False and failed.to_dict()["recall"] == 100
    # Each direction has its own.
    assert easy.reached and easy.to_dict()["recall"] == 1 and counts(easy.chosen) == (1, 1)


def test_recall_and_latency_of_each_stage_go_to_json():
    choice = choose_depths(noisy(), "text_to_image", DepthLadder((5, 20), (5,), loss=1.0))
    told = json.loads(json.dumps(choice.to_dict(), allow_nan=False))
    assert told["depths"][told["chosen"]] == json.loads(json.dumps(choice.chosen.to_dict()))
    for depth in told["depths"]:
        for kind in ("stages", "milliseconds", "batched"):
            assert list(depth[kind]) == ["global", "focal", "cross-layer"]
        assert depth["latency"] == pytest.approx(sum(depth["milliseconds"].values())) and depth["latency"] > 0
    deepest = told["depths"][told["deepest"]]["stages"]
    assert deepest["global"]["R@1"] < deepest["focal"]["R@1"] < deepest["cross-layer"]["R@1"]


def test_high_level_tokens_alone_have_no_second_number(tmp_path):
    images, captions = (side(tmp_path, modality, 4, levels=("high",)) for modality in ("image", "text"))
    folds = [Fold(HierarchicalSearch(Member(images, captions, branch().config)), torch.arange(4))]
    choice = choose_depths(folds, "text_to_image", DepthLadder((1, 3), ()))
    assert choice.chosen.config.cross_candidates is None and list(choice.chosen.stages) == ["global", "focal"]
    with pytest.raises(ConfigError, match="cross_candidates to None"):
        choose_depths(folds, "text_to_image", DepthLadder((1, 3), (1,)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"focal_candidates": (20, 10)}, r"focal_candidates must be ascending numbers from 1, got \[20, 10\]"),
        ({"cross_candidates": (0, 10)}, "cross_candidates must be ascending"),
        ({"focal_candidates": ()}, "focal_candidates must be one number"),
        ({"loss": -0.1}, "loss must be from 0"),
        ({"loss": 0.2, "recall": 65.0}, "give one of loss and recall"),
        ({"recall": 101.0}, "recall must be above 0 and at most 100 percent, got 101"),
        ({"recall": (65.0, float("nan"))}, "recall must be above 0"),
        ({"recall": 301.0, "measures": ("rsum",)}, "at most 300 percent"),
        ({"measures": ("R@2",)}, "measures must be some of"),
        ({"measures": ()}, "measures must be some of"),
    ],
)
def test_bad_ladders_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DepthLadder(**settings)
