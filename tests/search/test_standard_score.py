import numpy as np
import pytest
import torch
from index.memory_index import MemoryIndex
from search.indexes import head_of, rows_of

from modalloy.search.standard_score import Spread, sample_vectors, spread_of


def index_of(vectors: torch.Tensor, texts: torch.Tensor | None = None) -> MemoryIndex:
    index = MemoryIndex(head_of(vectors.shape[1]))
    index.commit(rows_of({f"p{row}": vector for row, vector in enumerate(vectors)}))
    if texts is not None:
        index.commit(rows_of({f"p{row}#0": vector for row, vector in enumerate(texts)}))
    return index


@pytest.mark.parametrize("count", [1, 2, 63, 130])
def test_a_small_index_is_its_own_sample(count):
    vectors = torch.randn(count, 3)
    sample = sample_vectors(index_of(vectors, torch.randn(5, 3)).snapshot(), "image", size=130)
    assert torch.equal(sample, vectors)
    question = torch.randn(3)
    scores = (vectors.double() @ question.double()).numpy()
    mean, deviation = spread_of(sample, question)
    assert mean == pytest.approx(np.mean(scores), abs=1e-6)
    assert deviation == pytest.approx(np.std(scores) if count > 1 else 1.0, abs=1e-6)


def test_of_a_larger_index_the_same_runs_of_rows_are_drawn():
    vectors = torch.arange(1000.0)[:, None]
    snapshot = index_of(vectors).snapshot()
    sample = sample_vectors(snapshot, "image", size=256)
    rows = sample.flatten().long().tolist()
    assert len(set(rows)) == 256 and all(
        row % 64 == 0 and rows[at : at + 64] == list(range(row, row + 64))
        for at, row in enumerate(rows)
        if at % 64 == 0
    )
    assert torch.equal(sample, sample_vectors(snapshot, "image", size=256))
    assert not torch.equal(sample, sample_vectors(snapshot, "image", size=256, seed=1))
    drawn = [sample_vectors(snapshot, "image", size=256, seed=seed) for seed in range(20)]
    assert set(torch.cat(drawn).flatten().long().tolist()) == set(range(15 * 64))


def test_an_index_without_captions_has_no_sample_of_them():
    sample = sample_vectors(index_of(torch.randn(3, 2)).snapshot(), "text")
    assert sample.shape == (0, 2)
    assert spread_of(sample, torch.randn(2)) == Spread(0.0, 1.0)


def test_equal_scores_spread_by_nothing_and_are_not_divided_by_it():
    spread = spread_of(torch.ones(9, 3), torch.full((3,), 0.1))
    assert spread.deviation == 1.0 and spread.standard(spread.mean) == 0.0
    assert spread_of(torch.tensor([[1.0], [1.0 + 2**-23]]), torch.ones(1)).deviation == 1.0
