import pytest
import torch

from modalloy.errors import ConfigError
from modalloy.fusion import InputShape, ScoreFusion

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
