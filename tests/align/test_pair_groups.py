"""Groups of pairs against what they are groups of, and their scores against loops."""

import pytest
import torch
from align.loops import loop_similarity
from hypothesis import given
from hypothesis import strategies as st

from modalloy.align import CrossAttention, Tokens, candidate_similarity
from modalloy.align.local_similarity import ReusedTokens
from modalloy.align.pair_groups import groups, shared_is_context


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), max_size=40), st.integers(1, 20))
def test_each_pair_is_in_one_group_with_pairs_of_its_item(pairs, block):
    shared, length = torch.tensor(pairs, dtype=torch.long).view(-1, 2).unbind(1)
    tables = list(groups(shared, length, block))
    assert sorted(place for table in tables for place in table.flatten().tolist()) == list(range(len(pairs)))
    for table in tables:
        assert table.numel() <= block
        assert all(len(set(row)) == 1 for row in shared[table].tolist())
        assert all(row == sorted(row) for row in length[table].tolist())  # about equally long ones together


def test_that_side_is_shared_which_saves_more_tokens():
    every = torch.cartesian_prod(torch.arange(8), torch.arange(8))
    assert shared_is_context(every, 49, 32) and not shared_is_context(every, 32, 49)
    # Nothing is saved where each context has one pair.
    one_query = torch.stack([torch.arange(8), torch.zeros(8, dtype=torch.long)], dim=1)
    assert not shared_is_context(one_query, 49, 32)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("focal", [None, "equal", "prob"])
@pytest.mark.parametrize("longer", ["images", "captions"])
@pytest.mark.parametrize("reused", [Tokens, ReusedTokens])
@pytest.mark.parametrize("gaps", [False, True])
def test_scores_of_groups_are_those_of_loops(direction, focal, longer, reused, gaps):
    torch.manual_seed(0)

    def tokens(items: int, longest: int) -> Tokens:
        ends = torch.randint(0, longest + 1, (items, longest if gaps else 1))
        mask = torch.arange(longest) < ends
        values = torch.randn(items, longest, 5, dtype=torch.float64)
        return reused(values.masked_fill(~mask[:, :, None], torch.nan), mask)

    images, captions = (tokens(12, 7 if longer == side else 3) for side in ("images", "captions"))
    attention = CrossAttention(direction, focal)
    candidates = torch.rand(12, 12).argsort(1)[:, :11]
    clean = [Tokens(each.values.nan_to_num(), each.mask) for each in (images, captions)]
    expected = loop_similarity(*clean, attention).T.gather(1, candidates)
    for block in (1, 5, None):  # and twice, as reused tokens keep what they made
        found = candidate_similarity(images, captions, candidates, "text_to_image", attention, block=block)
        torch.testing.assert_close(found, expected)
