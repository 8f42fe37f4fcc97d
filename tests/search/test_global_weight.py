"""The weight of the vectors' similarity, against searches with each weight."""

from dataclasses import replace

import pytest
import torch
from search.test_depths import ITEMS, noisy

from modalloy.errors import ConfigError
from modalloy.evaluation.ranks import DIRECTIONS
from modalloy.search.depth import Fold, measure_depth
from modalloy.search.global_weight import choose_global_weight
from modalloy.search.hierarchical import HierarchicalSearch
from modalloy.search.hierarchy_config import HierarchyConfig
from modalloy.search.member import Side
from modalloy.search.token_source import HeldTokens

SETTINGS = [
    HierarchyConfig(20, 5),
    HierarchyConfig(20, 20, focal_weight=0.3),
    HierarchyConfig(20, None),
    HierarchyConfig(None, 5, cross_weight=0.5),
    # More than there are.
    HierarchyConfig(ITEMS + 9, 7),
]


@pytest.mark.parametrize("config", SETTINGS)
def test_the_choice_is_that_of_searching_with_each_weight(config):
    folds = noisy()
    chosen, rsums = choose_global_weight(folds, config, [4.0, 0.2, 1.0, 0.0])
    assert list(rsums) == [0.0, 0.2, 1.0, 4.0] and len(set(rsums.values())) > 1
    for weight, rsum in rsums.items():
        setting = replace(config, global_weight=weight)
        each = [measure_depth(folds, direction, setting, timed=1).final.rsum for direction in DIRECTIONS]
        assert rsum == pytest.approx(sum(each))
    assert chosen == max(rsums, key=rsums.get)


def test_an_item_whose_tokens_are_no_numbers_moves_no_other():
    (fold,), config = noisy(), HierarchyConfig(20, 20)
    (both,) = fold.search.members
    levels = both.images.tokens.read(torch.arange(ITEMS), ["high", "mid"])
    levels["high"].values[7] = torch.nan
    images = Side(both.images.vectors, HeldTokens(levels))
    fold = Fold(HierarchicalSearch(replace(both, images=images)), fold.caption_image)
    _, rsums = choose_global_weight([fold], config, [1.0])
    setting = replace(config, global_weight=1.0)
    each = [measure_depth([fold], direction, setting, timed=1).final.rsum for direction in DIRECTIONS]
    assert rsums[1.0] == pytest.approx(sum(each))


def test_folds_are_ranked_on_their_own():
    (fold,), config = noisy(), HierarchyConfig(20, 5)
    _, one = choose_global_weight([fold], config)
    _, two = choose_global_weight([fold, fold], config)
    assert two == pytest.approx(one)


def test_of_equal_weights_the_smallest_is_taken_and_none_is_refused():
    assert choose_global_weight(noisy(), HierarchyConfig(1, 1), [2.0, 1.0])[0] == 1.0
    with pytest.raises(ConfigError, match="weight to choose"):
        choose_global_weight(noisy(), HierarchyConfig(), [])
