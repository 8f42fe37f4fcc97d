from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modalloy.search import top_k as module
from modalloy.search.top_k import top_k


def naive_top_k(queries: Tensor, vectors: Tensor, k: int, searchable: Tensor) -> list[list[tuple[float, int]]]:
    answers = []
    for query in queries.tolist():
        scores = [sum(a * b for a, b in zip(query, vector, strict=True)) for vector in vectors.tolist()]
        scored = [(score, row) for row, score in enumerate(scores) if searchable[row]]
        answers.append(sorted(scored, key=lambda found: (-found[0], found[1]))[:k])
    return answers


def pairs(found: tuple[Tensor, Tensor]) -> list[list[tuple[float, int]]]:
    scores, rows = found
    return [list(zip(score, row, strict=True)) for score, row in zip(scores.tolist(), rows.tolist(), strict=True)]


@st.composite
def problems(draw: Callable) -> tuple[Tensor, Tensor, int, Tensor]:
    # Small whole numbers: exact in any order of summation, and rich in ties and in both zeros.
    count, items, dim = draw(st.integers(0, 5)), draw(st.integers(0, 12)), draw(st.integers(1, 3))
    numbers = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0])

    def matrix(rows: int) -> Tensor:
        values = draw(st.lists(numbers, min_size=rows * dim, max_size=rows * dim))
        return torch.tensor(values, dtype=torch.float32).view(rows, dim)

    searchable = draw(st.lists(st.booleans(), min_size=items, max_size=items))
    vectors = matrix(items)
    return matrix(count), vectors, draw(st.integers(1, 15)), torch.tensor(searchable, dtype=torch.bool)


@given(problems(), st.integers(1, 5), st.integers(1, 5))
def test_equals_the_naive_search_at_every_block_size(problem, query_block: int, item_block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUERY_BLOCK", query_block)
        patch.setattr(module, "ITEM_BLOCK", item_block)
        assert pairs(top_k(*problem)) == naive_top_k(*problem)


def test_nan_rows_are_never_found() -> None:
    vectors = torch.tensor([[1.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0], [-1.0, 0.0]])
    scores, rows = top_k(torch.tensor([[1.0, 0.0]]), vectors, 4, vectors.isfinite().all(1))
    assert rows.tolist() == [[0, 3]]
    assert scores.tolist() == [[1.0, -1.0]]


def test_copies_of_an_item_tie_whatever_block_they_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    item, queries = torch.randn(1, 333), torch.randn(7, 333)
    vectors = torch.cat([torch.randn(4, 333), item, torch.randn(5, 333), item, item, torch.randn(1, 333), item])
    for block in (1, 2, 3, 5, 8, 100):
        monkeypatch.setattr(module, "ITEM_BLOCK", block)
        scores, rows = top_k(queries, vectors, len(vectors), torch.ones(len(vectors), dtype=torch.bool))
        for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
            places = [row.index(copy) for copy in (4, 10, 11, 13)]
            assert places == list(range(places[0], places[0] + 4))
            assert len({score[place] for place in places}) == 1


def test_a_query_answers_alike_alone_and_among_others() -> None:
    torch.manual_seed(1)
    queries, vectors = torch.randn(300, 65), torch.randn(1000, 65)
    everything = torch.ones(1000, dtype=torch.bool)
    scores, rows = top_k(queries, vectors, 10, everything)
    for index in (0, 255, 256, 299):
        alone = top_k(queries[index : index + 1], vectors, 10, everything)
        assert torch.equal(alone[0][0], scores[index])
        assert torch.equal(alone[1][0], rows[index])


def test_scores_agree_with_the_full_product() -> None:
    torch.manual_seed(2)
    queries, vectors = torch.randn(20, 64), torch.randn(9000, 64)
    scores, rows = top_k(queries, vectors, 50, torch.ones(9000, dtype=torch.bool))
    best = (queries.double() @ vectors.double().T).sort(dim=1, descending=True)
    assert torch.equal(rows, best.indices[:, :50])
    torch.testing.assert_close(scores.double(), best.values[:, :50])
