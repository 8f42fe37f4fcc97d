import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from modalloy.errors import ConfigError
from modalloy.evaluation import EmbeddingScores, metrics, rank_queries
from modalloy.fusion import InputShape, ScoreFusion, tune_weights
from modalloy.fusion.simplex import simplex_grid

SHAPES = [InputShape(3, 5, 6), InputShape(4, 7, 8), InputShape(2, 6, 3)]


@pytest.mark.parametrize("weights", [[1, 1], [0.2, 0.6], [0, 3], [1, 2, 3]])
def test_its_vectors_fold_the_weighted_cosines(make_features, weights):
    shapes = SHAPES[: len(weights)]
    fuser = ScoreFusion([float(weight) for weight in weights], shapes)
    image = [make_features(3, shape.dim, shape.image_width, seed=k) for k, shape in enumerate(shapes)]
    text = [make_features(4, shape.dim, shape.text_width, seed=k + 9) for k, shape in enumerate(shapes)]
    image_vectors, text_vectors = fuser.embed("image", image), fuser.embed("text", text)
    cosines = zip(weights, image, text, strict=True)
    expected = sum(weight * i.embedding @ t.embedding.T for weight, i, t in cosines) / sum(weights)
    torch.testing.assert_close(image_vectors @ text_vectors.T, expected, rtol=0, atol=1e-6)
    assert image_vectors.shape == (3, fuser.dim)
    torch.testing.assert_close(image_vectors.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "one weight for each of 2 encoders, got 1"),
        ([1.0, 1.0, 1.0], "got 3"),
        ([1.0, -0.1], "not negative"),
        ([0.0, 0.0], "not all zero"),
        ([1.0, float("nan")], "finite"),
        ([float("inf"), 1.0], "finite"),
    ],
)
def test_impossible_weights_are_refused(weights, message):
    with pytest.raises(ConfigError, match=message):
        ScoreFusion(weights, SHAPES[:2])


def test_a_fusion_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="weights"):
        ScoreFusion([], [])


def test_inputs_of_other_encoders_are_refused(make_features):
    fuser = ScoreFusion([1.0, 1.0], SHAPES[:2])
    with pytest.raises(ConfigError, match="2 encoders, got 1"):
        fuser.embed("image", [make_features(2, 3, 5)])


def rsum(image, text, caption_image, weights) -> float:
    matrix = sum(w * (i.double() @ t.double().T) for w, i, t in zip(weights, image, text, strict=True))
    scores = EmbeddingScores(matrix.float(), torch.eye(matrix.shape[1]))
    return metrics(rank_queries(scores, caption_image)).rsum


@given(encoders=st.integers(2, 3), steps=st.integers(1, 4), seed=st.integers(0, 2**16))
@settings(max_examples=10)
def test_tuned_weights_are_the_best_by_brute_force(encoders, steps, seed):
    torch.manual_seed(seed)
    caption_image = torch.arange(30) // 2
    image = [normalize(torch.randn(15, 4), dim=-1) for _ in range(encoders)]
    text = [normalize(each[caption_image] + (0.5 + k) * torch.randn(30, 4), dim=-1) for k, each in enumerate(image)]
    tuned = tune_weights(image, text, caption_image, steps)
    sums = {weights: rsum(image, text, caption_image, weights) for weights in simplex_grid(encoders, steps)}
    assert sums[tuned] == pytest.approx(max(sums.values()), abs=1e-6)
    assert sum(tuned) == pytest.approx(1)


def test_equally_good_weights_are_as_even_as_can_be():
    same = normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert tune_weights([same, same], [same, same], torch.arange(12), steps=4) == (0.5, 0.5)
    assert max(tune_weights([same] * 3, [same] * 3, torch.arange(12), steps=3)) == pytest.approx(1 / 3)


def test_a_useless_input_gets_no_weight():
    generator = torch.Generator().manual_seed(0)
    good = torch.eye(20)
    bad = [normalize(torch.randn(20, 2, generator=generator), dim=-1) for _ in range(2)]
    weights = tune_weights([good, bad[0]], [good * 0.05, bad[1]], torch.arange(20), steps=10)
    assert weights == (1.0, 0.0)
