"""Recall of a depth in one fold or several, and its times."""

import pytest
import torch
from search.local_toys import branch, member, readers, stored

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.metrics import direction_metrics
from modalloy.search.depth import Fold, measure_depth, stage_ranks
from modalloy.search.hierarchical import HierarchicalSearch
from modalloy.search.hierarchy_config import HierarchyConfig
from modalloy.search.member import Member, Side
from modalloy.search.token_source import StoredTokens

DIRECTIONS = ["image_to_text", "text_to_image"]


def test_several_captions_an_image_and_images_without(tmp_path):
    search, owner = HierarchicalSearch(member(tmp_path, 4, 5)), torch.tensor([0, 0, 2, 3, 3])
    for direction, queries in zip(DIRECTIONS, (3, 5), strict=True):
        depth = measure_depth([Fold(search, owner)], direction, HierarchyConfig(None, 5))
        assert depth.final.queries == queries and depth.final.recall_5 == 100
    ranks = stage_ranks(search("image_to_text", HierarchyConfig(1, 1)), owner, 4, "image_to_text")
    assert all(found[1].isnan() for found in ranks.values())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_each_fold_is_searched_on_its_own(tmp_path, direction):
    stores = {modality: stored(tmp_path, modality, rows)[1] for modality, rows in (("image", 6), ("text", 12))}

    def part(modality: str, rows: range) -> Side:
        tokens = StoredTokens(modality, readers(modality, stores[modality]), torch.tensor(rows))
        return Side(stores[modality]["high"].embeddings(torch.tensor(rows)), tokens)

    def fold(start: int) -> Fold:
        images, captions = part("image", range(start, start + 2)), part("text", range(2 * start, 2 * start + 4))
        search = HierarchicalSearch(Member(images, captions, branch().config))
        return Fold(search, torch.arange(2).repeat_interleave(2))

    folds, config = [fold(start) for start in (0, 2, 4)], HierarchyConfig(2, 1)
    found = measure_depth(folds, direction, config)
    alone = [measure_depth([each], direction, config) for each in folds]
    for stage, ranks in found.ranks.items():
        assert torch.equal(ranks, torch.cat([each.ranks[stage] for each in alone]))
        # Of equally large folds it is the mean of their recalls.
        means = sum(direction_metrics(each.ranks[stage]).rsum for each in alone) / 3
        assert found.stages[stage].rsum == pytest.approx(means)


def test_some_queries_are_timed_one_by_one(tmp_path, monkeypatch):
    search, asked = HierarchicalSearch(member(tmp_path, 5, 9)), []
    call = HierarchicalSearch.__call__

    def told(self, direction, config, queries=None):
        asked.append(queries if queries is None else queries.tolist())
        stages = call(self, direction, config, queries)
        for stage in stages:
            vars(stage)["seconds"] = 9.0 if queries is None else float(queries)
        return stages

    monkeypatch.setattr(HierarchicalSearch, "__call__", told)
    depth = measure_depth(
        [Fold(search, torch.arange(5).repeat(2)[:9])], "text_to_image", HierarchyConfig(3, 2), timed=3
    )
    assert asked == [None, [0], [3], [6]]
    # The median of three, and nine seconds of nine queries.
    assert set(depth.milliseconds.values()) == {3000.0} and set(depth.batched.values()) == {1000.0}
    assert depth.latency == 9000.0


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(DataError, match="one fold or more, got none"):
        measure_depth([], "text_to_image", HierarchyConfig())
    fold = Fold(HierarchicalSearch(member(tmp_path, 4, 4)), torch.arange(4))
    with pytest.raises(ConfigError, match="timed must be at least 1 query, got 0"):
        measure_depth([fold], "text_to_image", HierarchyConfig(), timed=0)
