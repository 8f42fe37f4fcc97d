import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from modalloy.errors import ConfigError
from modalloy.fusion.similarity import SimilarityWeights, fold


@given(
    dims=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    images=st.integers(1, 3),
    texts=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_folding_is_the_weighted_similarity_in_one_inner_product(dims, images, texts, seed):
    torch.manual_seed(seed)
    weights = torch.rand(len(dims))
    weights[torch.rand(len(dims)) < 0.2] = 0
    weights = weights / weights.sum() if weights.sum() > 0 else torch.full((len(dims),), 1 / len(dims))
    image = [normalize(torch.randn(images, dim), dim=-1) for dim in dims]
    text = [normalize(torch.randn(texts, dim), dim=-1) for dim in dims]
    folded_image, folded_text = fold(image, weights), fold(text, weights)
    for i in range(images):
        for t in range(texts):
            expected = sum(
                float(weight) * sum(float(a) * float(b) for a, b in zip(x[i], y[t], strict=True))
                for weight, x, y in zip(weights, image, text, strict=True)
            )
            assert float(folded_image[i] @ folded_text[t]) == pytest.approx(expected, abs=1e-6)
    assert folded_image.shape == (images, sum(dims))
    torch.testing.assert_close(folded_image.norm(dim=-1), torch.ones(images))


def test_parts_and_weights_must_be_as_many():
    with pytest.raises(ValueError, match="zip"):
        fold([torch.eye(2)], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("inputs", [0, 1, 2, 4])
def test_weights_start_at_the_share_and_sum_to_one(inputs):
    weights = SimilarityWeights(inputs, share=0.6)()
    assert weights.shape == (1 + inputs,)
    assert weights.sum().item() == pytest.approx(1)
    if inputs:
        assert weights.tolist() == pytest.approx([0.4] + [0.6 / inputs] * inputs)
    else:
        assert weights.tolist() == [1]


@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=4))
def test_clamping_keeps_the_share_and_every_weight_in_bounds(alpha):
    weights = SimilarityWeights(len(alpha))
    weights.alpha.data = torch.tensor(alpha)
    weights.clamp_()
    assert 0.1 - 1e-6 <= weights.alpha.sum().item() <= 0.9 + 1e-6
    assert min(weights.alpha.tolist()) >= 0
    assert weights().sum().item() == pytest.approx(1, abs=1e-6)
    once = weights.alpha.clone()
    weights.clamp_()
    torch.testing.assert_close(weights.alpha, once)


@pytest.mark.parametrize(
    ("alpha", "clamped"),
    [
        ([0.3], [0.3]),
        ([0.02], [0.1]),
        ([1.4], [0.9]),
        ([-0.5], [0.1]),
        ([0.2, 0.4], [0.2, 0.4]),
        ([0.6, 1.2], [0.3, 0.6]),
        ([-1.0, 0.5], [0.0, 0.5]),
        ([-1.0, -1.0], [0.05, 0.05]),
    ],
)
def test_clamping_keeps_proportions_as_far_as_it_can(alpha, clamped):
    weights = SimilarityWeights(len(alpha))
    weights.alpha.data = torch.tensor(alpha)
    weights.clamp_()
    assert weights.alpha.tolist() == pytest.approx(clamped)


def test_without_inputs_there_is_nothing_to_clamp():
    weights = SimilarityWeights(0)
    weights.clamp_()
    assert weights().tolist() == [1]


@pytest.mark.parametrize("share", [0.0, 0.95, -1.0, float("nan")])
def test_a_share_out_of_bounds_is_refused(share):
    with pytest.raises(ConfigError, match=r"share must lie in \[0.1, 0.9\]"):
        SimilarityWeights(1, share)


def test_weights_can_be_set():
    weights = SimilarityWeights(2)
    weights.set_([0.05, 0.95, 0.0])
    torch.testing.assert_close(weights(), torch.tensor([0.05, 0.95, 0.0]))
    SimilarityWeights(0).set_([1.0])


@pytest.mark.parametrize("wrong", [[1.0], [0.5, 0.4, 0.05], [0.5, 0.7, -0.2], [0.5, 0.5, float("nan")]])
def test_impossible_weights_are_not_set(wrong):
    with pytest.raises(ConfigError, match="expected 3 weights of at least 0 that sum to 1"):
        SimilarityWeights(2).set_(wrong)
