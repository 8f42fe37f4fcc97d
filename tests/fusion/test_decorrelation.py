"""The penalty against numpy's correlation, its bounds, and what has no correlation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalloy.fusion.decorrelation import decorrelation_loss


def matrices(seed: int, size: int, count: int):
    generator = torch.Generator().manual_seed(seed)
    similarity, *others = torch.randn(1 + count, size, size, generator=generator, dtype=torch.float64)
    families = torch.randint(size, (size,), generator=generator)
    return similarity, others, families[:, None] != families[None, :]


@given(seed=st.integers(0, 2**16), size=st.integers(3, 6), count=st.integers(1, 3))
def test_it_is_the_mean_squared_correlation_over_the_unrelated_pairs(seed, size, count):
    similarity, others, unrelated = matrices(seed, size, count)
    pairs = [(row, column) for row in range(size) for column in range(size) if unrelated[row, column]]
    if not pairs:
        return
    squares = []
    for other in others:
        own, its = ([float(matrix[pair]) for pair in pairs] for matrix in (similarity, other))
        squares.append(np.corrcoef(own, its)[0, 1] ** 2)
    assert float(decorrelation_loss(similarity, others, unrelated)) == pytest.approx(np.mean(squares), rel=1e-6)


@given(seed=st.integers(0, 2**16), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_scale_and_shift_of_a_similarity_do_not_count(seed, scale, shift):
    similarity, others, unrelated = matrices(seed, 5, 2)
    loss = float(decorrelation_loss(similarity, others, unrelated))
    assert -1e-9 <= loss <= 1 + 1e-9
    assert float(decorrelation_loss(scale * similarity + shift, others, unrelated)) == pytest.approx(loss, abs=1e-6)


def test_related_pairs_do_not_count():
    similarity, others, _ = matrices(0, 4, 2)
    unrelated = ~torch.eye(4, dtype=torch.bool)
    louder = similarity + 100 * torch.eye(4)
    assert decorrelation_loss(louder, others, unrelated) == decorrelation_loss(similarity, others, unrelated)


@pytest.mark.parametrize("unrelated", [torch.zeros(3, 3, dtype=torch.bool), ~torch.eye(3, dtype=torch.bool)])
def test_where_nothing_varies_there_is_no_penalty_and_no_gradient(unrelated):
    similarity = torch.randn(3, 3, requires_grad=True)
    loss = decorrelation_loss(similarity, [torch.ones(3, 3)], unrelated)
    loss.backward()
    assert loss == 0 and not similarity.grad.any()


def test_gradient_steps_take_the_correlation_away():
    similarity, others, _ = matrices(3, 6, 2)
    unrelated, similarity = ~torch.eye(6, dtype=torch.bool), (similarity + 2 * others[0]).requires_grad_()
    optimizer, losses = torch.optim.Adam([similarity], 0.05), []
    for _ in range(100):
        losses.append(loss := decorrelation_loss(similarity, others, unrelated))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.01 < 0.3 < losses[0]
