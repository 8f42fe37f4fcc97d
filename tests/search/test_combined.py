import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from modalloy.search.combined import combine


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


weights = st.floats(0.05, 20).flatmap(lambda size: st.sampled_from([size, -size]))


@given(seed=st.integers(0, 99), given_weights=st.lists(weights, min_size=1, max_size=4))
def test_parts_count_in_units_of_their_own_spread(seed, given_weights):
    vectors, sample = drawn(seed, len(given_weights), 5), drawn(seed + 100, 40, 5)
    found = combine(given_weights, vectors, sample)
    ratios = [w / np.std(sample.numpy() @ v.numpy()) for w, v in zip(given_weights, vectors, strict=True)]
    expected = sum(ratio * v.numpy() for ratio, v in zip(ratios, vectors, strict=True)) / sum(map(abs, ratios))
    assert np.allclose(found.vector, expected, atol=1e-4)
    assert torch.allclose(found.parts.sum(0), found.vector)


@given(seed=st.integers(0, 99), factor=st.floats(0.01, 100))
def test_only_the_proportions_of_weights_matter(seed, factor):
    vectors, sample = drawn(seed, 2, 5), drawn(seed + 100, 40, 5)
    once, again = combine([1.0, -0.5], vectors, sample), combine([factor, -0.5 * factor], vectors, sample)
    assert torch.allclose(once.vector, again.vector, atol=1e-5)


@given(seed=st.integers(0, 99), weight=st.floats(0.1, 3))
def test_a_negative_part_lowers_the_standard_score_of_what_it_names(seed, weight):
    wanted, unwanted = drawn(seed, 2, 5)
    sample = drawn(seed + 100, 40, 5)
    # What the unwanted part names: the item nearest to it.
    named = sample[(sample @ unwanted).argmax()]
    alone = combine([1.0], wanted[None], sample)
    less = combine([1.0, -weight], torch.stack([wanted, unwanted]), sample)
    more = combine([1.0, weight], torch.stack([wanted, unwanted]), sample)
    assert less.parts[1] @ named < 0 < more.parts[1] @ named
    assert less.vector @ named < more.vector @ named
    assert alone.vector @ named == pytest.approx(float(wanted @ named), abs=1e-6)


@pytest.mark.parametrize(("weight", "sign"), [(3.0, 1), (-0.1, -1)])
def test_a_single_part_stays_as_it_is(weight, sign):
    vector, sample = drawn(1, 1, 5), drawn(2, 40, 5)
    assert torch.equal(combine([weight], vector, sample).vector, sign * vector[0])


@pytest.mark.parametrize("size", [5e-324, 1e-50, 1e308])
def test_weights_of_any_size_are_weights(size):
    vectors, sample = drawn(1, 2, 5), 3 * drawn(2, 40, 5)
    assert torch.allclose(combine([size, -size], vectors, sample).vector, combine([1.0, -1.0], vectors, sample).vector)


def test_without_a_sample_weights_count_as_they_are():
    assert combine([3.0, 1.0], torch.eye(2), torch.empty(0, 2)).vector.tolist() == [0.75, 0.25]
