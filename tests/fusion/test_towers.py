import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modalloy.errors import ConfigError
from modalloy.fusion import InputShape, TowerConfig, TowerFuser, count_parameters, hidden_of_equal_size

SHAPES = [InputShape(3, 5, 6), InputShape(4, 7, 8), InputShape(2, 6, 3), InputShape(5, 3, 4)]
SMALL = TowerConfig(token_dim=4, heads=2, dropout=0.0)
METHODS = ["hada", "concat-linear"]


@pytest.fixture(scope="session")
def make_inputs(make_features):
    def make(modality, shapes, batch=3, seed=0):
        return [make_features(batch, shape.dim, shape.width(modality), seed=seed + k) for k, shape in enumerate(shapes)]

    return make


def randomised(fuser: TowerFuser) -> TowerFuser:
    torch.manual_seed(1)
    for parameter in (*fuser.towers.parameters(), *fuser.matching.parameters()):
        nn.init.normal_(parameter, std=0.4)
    return fuser


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("encoders", [2, 3, 4])
@pytest.mark.parametrize("weighted", [(), (1,), (1, 0)])
def test_retrieval_vectors_fold_the_weighted_similarity(make_inputs, method, encoders, weighted):
    shapes = SHAPES[:encoders]
    config = dataclasses.replace(SMALL, method=method, weighted_inputs=weighted)
    fuser = randomised(TowerFuser(config, shapes))
    if weighted:
        fuser.similarity.alpha.data = torch.tensor([0.3, 0.05][: len(weighted)])
    image, text = make_inputs("image", shapes), make_inputs("text", shapes, batch=4, seed=9)
    image_vectors, text_vectors = fuser.embed("image", image), fuser.embed("text", text)
    similarity, *alphas = fuser.similarity().tolist()
    expected = similarity * fuser("image", image) @ fuser("text", text).T
    for alpha, position in zip(alphas, weighted, strict=True):
        expected = expected + alpha * image[position].embedding @ text[position].embedding.T
    torch.testing.assert_close(image_vectors @ text_vectors.T, expected, rtol=0, atol=1e-6)
    assert image_vectors.shape == (3, fuser.dim)
    assert fuser.dim == fuser.fused_dim + sum(shapes[position].dim for position in weighted)
    torch.testing.assert_close(image_vectors.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("encoders", [2, 3, 4])
def test_it_starts_from_the_mean_of_cosines(make_inputs, method, encoders):
    torch.manual_seed(0)
    shapes = SHAPES[:encoders]
    fuser = TowerFuser(dataclasses.replace(SMALL, method=method, dropout=0.5), shapes).eval()
    image, text = make_inputs("image", shapes), make_inputs("text", shapes, seed=9)
    mean = sum(i.embedding @ t.embedding.T for i, t in zip(image, text, strict=True)) / encoders
    product = fuser.embed("image", image) @ fuser.embed("text", text).T
    torch.testing.assert_close(product, mean, rtol=0, atol=1e-2)


def test_modalities_have_weights_of_their_own():
    fuser = TowerFuser(SMALL, SHAPES[:2])
    image, text = (dict(fuser.towers[modality].named_parameters()) for modality in ("image", "text"))
    assert image.keys() == text.keys()
    assert not any(image[name] is text[name] for name in image)
    assert image["project.0.weight"].shape[1] == 5
    assert text["project.0.weight"].shape[1] == 6


def test_the_output_may_be_narrower_from_a_random_start(make_inputs):
    fuser = TowerFuser(dataclasses.replace(SMALL, output_dim=2, start="random"), SHAPES[:2])
    assert fuser.dim == 2
    assert fuser.embed("text", make_inputs("text", SHAPES[:2])).shape == (3, 2)
    with pytest.raises(ConfigError, match="identity"):
        TowerFuser(dataclasses.replace(SMALL, output_dim=2), SHAPES[:2])


def test_inputs_of_other_encoders_are_refused(make_inputs):
    fuser = TowerFuser(SMALL, SHAPES[:2])
    with pytest.raises(ConfigError, match="features of 2 encoders, got 3"):
        fuser.embed("image", make_inputs("image", SHAPES[:3]))
    with pytest.raises(ConfigError, match="encoder 0's image features"):
        fuser("image", make_inputs("text", SHAPES[:2]))
    with pytest.raises(ConfigError, match="encoder 0's text features"):
        fuser("text", make_inputs("text", SHAPES[1::-1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_dim": 0}, "token_dim and heads must be at least 1"),
        ({"heads": 0}, "token_dim and heads must be at least 1"),
        ({"hidden": -1}, "hidden at least 0"),
        ({"output_dim": 0}, "output_dim must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"weighted_inputs": (0, 0)}, "each input once"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize(("field", "value"), [("method", "graph"), ("start", "zero")])
def test_unknown_choices_are_refused(field, value):
    config = dataclasses.replace(SMALL)
    object.__setattr__(config, field, value)  # past the type checks that only the tests have
    with pytest.raises(ConfigError, match=f"{field} must be .*, got '{value}'"):
        config.__post_init__()


@pytest.mark.parametrize("shapes", [[], SHAPES[:1]])
def test_a_fusion_takes_two_encoders(shapes):
    with pytest.raises(ConfigError, match=f"at least 2 encoders, got {len(shapes)}"):
        TowerFuser(SMALL, shapes)


@pytest.mark.parametrize("weighted", [(2,), (-1,), (0, 5)])
def test_weighted_inputs_must_be_among_the_encoders(weighted):
    with pytest.raises(ConfigError, match=r"weighted_inputs must lie in 0\.\.1"):
        TowerFuser(dataclasses.replace(SMALL, weighted_inputs=weighted), SHAPES[:2])


@pytest.mark.parametrize("method", METHODS)
def test_a_second_stage_starts_from_the_firsts_weights(make_inputs, method):
    first = randomised(TowerFuser(dataclasses.replace(SMALL, method=method), SHAPES[:3]))
    second = first.second_stage([2, 0])
    assert second.config == dataclasses.replace(first.config, weighted_inputs=(2, 0))
    assert second.dim == first.dim + 2 + 3
    assert second.similarity().tolist() == pytest.approx([0.5, 0.25, 0.25])
    image = make_inputs("image", SHAPES[:3])
    assert torch.equal(second("image", image), first("image", image))
    fused = first("image", image)
    assert torch.equal(second.matching(fused, fused), first.matching(fused, fused))
    with torch.no_grad():
        for parameter in second.towers.parameters():
            parameter.zero_()
    assert torch.equal(first("image", image), fused)


def test_counting_leaves_out_what_is_frozen():
    layers = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).requires_grad_(False))
    assert count_parameters(layers) == 8


@given(parameters=st.integers(0, 5_000), encoders=st.integers(2, 4))
@settings(max_examples=10)
def test_the_hidden_width_of_equal_size_is_the_nearest(parameters, encoders):
    shapes = SHAPES[:encoders]

    def size(hidden: int) -> int:
        wide = dataclasses.replace(SMALL, method="concat-linear", hidden=hidden)
        with torch.device("meta"):
            return count_parameters(TowerFuser(wide, shapes).towers)

    hidden = hidden_of_equal_size(SMALL, shapes, parameters)
    error = abs(size(hidden) - parameters)
    assert hidden >= 0
    assert error <= abs(size(hidden + 1) - parameters)
    assert hidden == 0 or error <= abs(size(hidden - 1) - parameters)


def test_a_baseline_can_be_as_large_as_hada():
    hada = count_parameters(TowerFuser(SMALL, SHAPES[:2]).towers)
    hidden = hidden_of_equal_size(SMALL, SHAPES[:2], hada)
    wide = dataclasses.replace(SMALL, method="concat-linear", hidden=hidden)
    assert count_parameters(TowerFuser(wide, SHAPES[:2]).towers) == pytest.approx(hada, rel=0.1)
