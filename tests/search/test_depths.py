"""Numbers of candidates chosen by brute force, and what is told of each."""

import json

import pytest
import torch
from search.local_toys import side
from torch.nn.functional import normalize

from modalloy.align import Tokens
from modalloy.errors import ConfigError
from modalloy.search.depths import DepthLadder, choose_depths, measure_depth, stage_ranks
from modalloy.search.hierarchical import HierarchicalSearch, HierarchyConfig, Side
from modalloy.search.token_source import HeldTokens

ITEMS = 60


def noisy() -> HierarchicalSearch:
    """Pairs that vectors hardly find, high-level tokens better, and those of both levels best."""
    torch.manual_seed(0)
    truth = torch.randn(ITEMS, 16)

    def seen(noise: float) -> torch.Tensor:
        return normalize(truth + noise * torch.randn(truth.shape), dim=1)

    def one() -> Side:
        mask = torch.ones(ITEMS, 1, dtype=torch.bool)
        return Side(seen(1.2), HeldTokens({level: Tokens(seen(0.7)[:, None], mask) for level in ("high", "mid")}))

    return HierarchicalSearch(one(), one())


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
@pytest.mark.parametrize(
    ("loss", "measures"), [(0.0, ("R@1",)), (2.0, ("R@1", "R@10")), (6.0, ("rsum",)), (99.0, ("R@1",))]
)
def test_the_choice_is_that_of_brute_force(direction, loss, measures):
    search, truth = noisy(), torch.arange(ITEMS)
    ladder = DepthLadder(first=(1, 5, 10, 20, 40), second=(2, 5, 10, 20), loss=loss, measures=measures)
    choice = choose_depths(search, truth, direction, ladder)

    def final(first: int, second: int) -> dict[str, float]:
        found = measure_depth(search, truth, direction, HierarchyConfig(first, min(first, second))).final
        return found.to_dict() | {"rsum": found.rsum}

    best = final(40, 20)

    def good(first: int, second: int) -> bool:
        found = final(first, second)
        return all(found[measure] >= best[measure] - loss - 1e-9 for measure in measures)

    first = next(first for first in ladder.first if good(first, 20))
    second = next(min(first, second) for second in ladder.second if good(first, second))
    assert (choice.chosen.config.first, choice.chosen.config.second) == (first, second)
    assert choice.deepest.config == HierarchyConfig(40, 20)
    counts = [(depth.config.first, depth.config.second) for depth in choice.depths]
    assert counts == sorted(set(counts)) and {(each, min(each, 20)) for each in ladder.first} <= set(counts)


def test_recall_and_latency_of_each_stage_go_to_json():
    choice = choose_depths(noisy(), torch.arange(ITEMS), "text_to_image", DepthLadder((5, 20), (5,), loss=1.0))
    told = json.loads(json.dumps(choice.to_dict(), allow_nan=False))
    assert told["depths"][told["chosen"]] == json.loads(json.dumps(choice.chosen.to_dict()))
    for depth in told["depths"]:
        assert list(depth["stages"]) == list(depth["milliseconds"]) == ["global", "focal", "cross-layer"]
        assert depth["latency"] == pytest.approx(sum(depth["milliseconds"].values())) and depth["latency"] > 0
    deepest = told["depths"][told["deepest"]]["stages"]
    assert deepest["global"]["R@1"] < deepest["focal"]["R@1"] < deepest["cross-layer"]["R@1"]


def test_several_captions_an_image_and_images_without(tmp_path):
    search = HierarchicalSearch(side(tmp_path, "image", 4), side(tmp_path, "text", 5))
    owner = torch.tensor([0, 0, 2, 3, 3])
    for direction, queries in (("image_to_text", 3), ("text_to_image", 5)):
        depth = measure_depth(search, owner, direction, HierarchyConfig(first=None, second=5))
        assert depth.final.queries == queries and depth.final.recall_5 == 100
    ranks = stage_ranks(search("image_to_text", HierarchyConfig(1, 1)), owner, 4, "image_to_text")
    assert all(found[1].isnan() for found in ranks.values())


def test_high_level_tokens_alone_have_no_second_number(tmp_path):
    search = HierarchicalSearch(
        side(tmp_path, "image", 4, levels=("high",)), side(tmp_path, "text", 4, levels=("high",))
    )
    choice = choose_depths(search, torch.arange(4), "text_to_image", DepthLadder((1, 3), ()))
    assert choice.chosen.config.second is None and list(choice.chosen.stages) == ["global", "focal"]
    with pytest.raises(ConfigError, match="second to None"):
        choose_depths(search, torch.arange(4), "text_to_image", DepthLadder((1, 3), (1,)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first": (20, 10)}, r"first must be ascending numbers from 1, got \[20, 10\]"),
        ({"second": (0, 10)}, "second must be ascending"),
        ({"first": ()}, "first must be one number"),
        ({"loss": -0.1}, "loss must be from 0"),
        ({"measures": ("R@2",)}, "measures must be some of"),
        ({"measures": ()}, "measures must be some of"),
    ],
)
def test_bad_ladders_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DepthLadder(**settings)
