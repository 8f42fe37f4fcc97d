from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modalloy.errors import ConfigError
from modalloy.fusion import InputShape, Mixture, ScoreFusion, TowerConfig, TowerFuser

SHAPES = (InputShape(3, 5, 6), InputShape(4, 7, 8))


def tower(seed: int, method: str = "hada", **changes) -> TowerFuser:
    torch.manual_seed(seed)
    config = TowerConfig(method, token_dim=4, heads=2, dropout=0.5, start="random", **changes)
    return TowerFuser(config, SHAPES).eval()


@pytest.fixture
def features(make_features):
    image = [make_features(3, shape.dim, shape.image_width, seed=k) for k, shape in enumerate(SHAPES)]
    text = [make_features(5, shape.dim, shape.text_width, seed=k + 9) for k, shape in enumerate(SHAPES)]
    return image, text


def similarity(fuser, image, text) -> torch.Tensor:
    return fuser.embed("image", image) @ fuser.embed("text", text).T


@given(weights=st.lists(st.sampled_from([0.0, 0.05, 0.3, 2.0]), min_size=5, max_size=5).filter(any))
@settings(max_examples=15)
def test_its_vectors_fold_the_weighted_similarities_of_members_and_inputs(make_features, weights):
    image = [make_features(3, shape.dim, shape.image_width, seed=k) for k, shape in enumerate(SHAPES)]
    text = [make_features(5, shape.dim, shape.text_width, seed=k + 9) for k, shape in enumerate(SHAPES)]
    members = [tower(0), tower(1, "concat-linear", weighted_inputs=(1,)), ScoreFusion([1.0, 2.0], SHAPES)]
    mixture = Mixture(members, [1, 0], weights, SHAPES)
    own = [image[k].embedding @ text[k].embedding.T for k in (1, 0)]
    parts = [*(similarity(member, image, text) for member in members), *own]
    expected = sum(weight * part for weight, part in zip(weights, parts, strict=True)) / sum(weights)
    torch.testing.assert_close(similarity(mixture, image, text), expected, rtol=0, atol=1e-6)
    vectors = mixture.embed("image", image)
    assert vectors.shape == (3, mixture.dim)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))


def test_a_part_without_weight_is_neither_kept_nor_computed(features, monkeypatch):
    graph, linear = tower(0), tower(1, "concat-linear")
    monkeypatch.setattr(graph, "embed", None)
    mixture = Mixture([graph, linear], [0, 1], [0.0, 1.0, 0.0, 3.0], SHAPES)
    assert mixture.dim == linear.dim + SHAPES[1].dim
    assert mixture.tokens_read == 0
    assert Mixture([graph, linear], [], [1.0, 1.0], SHAPES).tokens_read is None
    assert mixture.embed("text", features[1]).shape == (5, mixture.dim)
    assert mixture.weights.tolist() == [0.25, 0.75]
    assert {name.partition(".")[2] for name in mixture.state_dict() if "." in name} == {
        f"0.{name}" for name in linear.state_dict()
    }


def test_without_members_it_is_a_score_fusion(features):
    mixture, scores = Mixture([], [0, 1], [1.0, 3.0], SHAPES), ScoreFusion([1.0, 3.0], SHAPES)
    assert torch.equal(mixture.embed("image", features[0]), scores.embed("image", features[0]))
    assert list(mixture.state_dict()) == ["weights"]


@pytest.mark.parametrize(
    ("inputs", "weights", "message"),
    [
        ([0], [1.0], "one weight for each of 1 members and 1 inputs, got 1"),
        ([0], [1.0, -1.0], "not negative"),
        ([0], [0.0, 0.0], "not all zero"),
        ([0], [1.0, float("nan")], "finite"),
        ([0, 0], [1.0, 1.0, 1.0], r"different positions in 0\.\.1, got \(0, 0\)"),
        ([2], [1.0, 1.0], r"different positions in 0\.\.1, got \(2,\)"),
    ],
)
def test_impossible_mixtures_are_refused(inputs, weights, message):
    with pytest.raises(ConfigError, match=message):
        Mixture([tower(0)], inputs, weights, SHAPES)


def test_members_of_other_inputs_are_refused(features):
    with pytest.raises(ConfigError, match="member 1 fuses inputs of the widths"):
        Mixture([tower(0), ScoreFusion([1.0], SHAPES[:1])], [], [1.0, 1.0], SHAPES)
    with pytest.raises(ConfigError, match="2 encoders, got 1"):
        Mixture([], [0], [1.0], SHAPES).embed("image", features[0][:1])


def test_an_input_that_an_item_lacks_counts_as_zero(make_features):
    mixture = Mixture([], [0, 1], [1.0, 3.0], SHAPES)
    inputs = [make_features(2, shape.dim, shape.image_width, seed=k) for k, shape in enumerate(SHAPES)]
    inputs[1] = replace(inputs[1], present=torch.tensor([True, False]))
    inputs[1].embedding[1] = torch.nan
    vectors = mixture.embed("image", inputs)
    width = SHAPES[0].dim
    torch.testing.assert_close(vectors[:, :width], inputs[0].embedding * 0.5)
    torch.testing.assert_close(vectors[0, width:], inputs[1].embedding[0] * 0.75**0.5)
    assert vectors[1, width:].eq(0).all()
