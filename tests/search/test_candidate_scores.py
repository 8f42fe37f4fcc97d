"""Candidates' scores against loops over pairs, and what is read for them."""

import pytest
import torch
from jaxtyping import TypeCheckError
from search.local_toys import all_levels, branch, loop_terms, stored

from modalloy.align.cross_layer import CROSS, CROSS_LAYER, FOCAL
from modalloy.errors import ConfigError, DataError
from modalloy.search.candidate_scores import candidate_scores

ATTENTION = branch().config.attention


class Recorded:
    """Which items are read."""

    def __init__(self, source):
        self.source, self.levels, self.reads = source, source.levels, []

    def __len__(self):
        return len(self.source)

    def read(self, items, levels):
        self.reads.append((items.tolist(), set(levels)))
        return self.source.read(items, levels)


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
@pytest.mark.parametrize("terms", [FOCAL, CROSS, CROSS_LAYER])
@pytest.mark.parametrize("width", [2, 8])  # few pairs of a block, scored one by one; nearly all, together
def test_scores_are_those_of_loops_at_any_block(tmp_path, direction, terms, width):
    images, captions = stored(tmp_path, "image", 9)[0], stored(tmp_path, "text", 11)[0]
    table = loop_terms(all_levels(images), all_levels(captions), terms)
    queries, items = (images, captions) if direction == "image_to_text" else (captions, images)
    table = table if direction == "image_to_text" else table.T
    candidates = torch.stack([torch.randperm(len(items))[:width] for _ in range(len(queries))])
    candidates[::3, 1] = -1
    expected = table.gather(1, candidates.clamp(min=0)).masked_fill(candidates < 0, -torch.inf)
    for block in (1, 4, 100):
        found = candidate_scores(all_levels(queries), items, candidates, direction, ATTENTION, terms, block)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_each_candidate_is_read_once_in_bounded_blocks(tmp_path):
    images, captions = stored(tmp_path, "image", 9)[0], stored(tmp_path, "text", 11)[0]
    recorded = Recorded(images)
    candidates = torch.randint(0, 7, (11, 1)).expand(-1, 2).clone()
    candidates[:, 1] = 8
    candidate_scores(all_levels(captions), recorded, candidates, "text_to_image", ATTENTION, FOCAL, 3)
    items = [item for read, _ in recorded.reads for item in read]
    assert items == candidates.unique().tolist()
    assert all(len(read) <= 3 and levels == {"high"} for read, levels in recorded.reads)


def test_without_candidates_nothing_is_read(tmp_path):
    captions = stored(tmp_path, "text", 3)[0]
    recorded = Recorded(stored(tmp_path, "image", 2)[0])
    for candidates in (torch.full((3, 2), -1), torch.empty(3, 0, dtype=torch.long)):
        found = candidate_scores(all_levels(captions), recorded, candidates, "text_to_image", ATTENTION, FOCAL)
        assert torch.equal(found, torch.full(candidates.shape, -torch.inf))
    assert not recorded.reads


def test_bad_arguments_are_refused(tmp_path):
    captions, images = stored(tmp_path, "text", 3)[0], stored(tmp_path, "image", 2, levels=("high",))[0]
    queries, zeros = all_levels(captions), torch.zeros(3, 1, dtype=torch.long)

    def score(candidates=zeros, direction="text_to_image", terms=FOCAL, block=1):
        return candidate_scores(queries, images, candidates, direction, ATTENTION, terms, block)

    with pytest.raises(DataError, match="from 0 to 1, or -1 for an empty one, got 0 to 2"):
        score(torch.tensor([[0], [2], [1]]))
    with pytest.raises(DataError, match=r"got 2 rows for \[3\]"):
        score(zeros[:2])
    with pytest.raises((ConfigError, TypeCheckError), match="sideways"):
        score(direction="sideways")
    with pytest.raises(ConfigError, match="item_block must be at least 1, got 0"):
        score(block=0)
    with pytest.raises(DataError, match="no tokens of the level 'mid'"):
        score(terms=CROSS)
