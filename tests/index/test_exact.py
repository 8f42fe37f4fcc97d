import pytest
import torch
from toy_index import unit_vectors

from modalloy.index.exact import best_of_blocks, best_rows


@pytest.mark.parametrize("block", [1, 7, 40, 100])
@pytest.mark.parametrize("k", [1, 5, 200])
def test_blocks_give_what_one_look_at_all_gives(block, k):
    vectors, queries = unit_vectors(100, 16), unit_vectors(3, 16, seed=1)
    ids = [f"p{place}" for place in range(100)]
    blocks = ((ids[at : at + block], vectors[at : at + block]) for at in range(0, 100, block))
    for query, found in zip(queries, best_of_blocks(queries, blocks, k), strict=True):
        scores = (vectors.double() @ query.double()).float()
        order = scores.argsort(descending=True, stable=True)[:k].tolist()
        assert found.ids == [ids[place] for place in order] and found.scores == scores[order].tolist()


def test_what_rounding_leaves_undecided_is_decided():
    query = unit_vectors(1, 512, seed=1)[0]
    noise = 1e-7 * unit_vectors(300, 512, seed=3)
    vectors = unit_vectors(1, 512, seed=2) + noise
    scores = (vectors.double() @ query.double()).float()
    expected = scores.argsort(descending=True, stable=True)[:10]
    assert (vectors @ query).argsort(descending=True, stable=True)[:10].tolist() != expected.tolist()
    rows, found = best_rows(query, vectors, 10)
    assert rows.tolist() == expected.tolist() and torch.equal(found, scores[expected])


def test_what_is_not_finite_spoils_nothing():
    vectors, ids = unit_vectors(9, 16), list("abcdefghi")
    expected = best_of_blocks(vectors[:1], [(ids[:3] + ids[5:], vectors[[0, 1, 2, 5, 6, 7, 8]])], 9)
    vectors[3, 1], vectors[4, 0] = torch.nan, torch.inf
    assert best_of_blocks(vectors[:1], iter([(ids[:4], vectors[:4]), (ids[4:], vectors[4:])]), 9) == expected
