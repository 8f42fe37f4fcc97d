import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from modalloy.errors import ConfigError, DataError
from modalloy.fusion import InputShape, TowerConfig, TowerFuser, count_parameters, hidden_of_equal_size
from modalloy.fusion.original_hada import OriginalHadaConfig

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


@pytest.mark.parametrize("method", [*METHODS, "hada-original"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_configuration_knows_whether_its_layers_have_batch_norm(method, norm):
    config = dataclasses.replace(SMALL, method=method, original=OriginalHadaConfig(norm=norm))
    found = [isinstance(each, _BatchNorm) for each in TowerFuser(config, SHAPES[:2]).modules()]
    assert config.batch_norm == any(found) == ((method, norm) == ("hada-original", "batch"))


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


NEW = {
    "graph": "transformer",
    "layers": 2,
    "edges": "learned",
    "read_embeddings": False,
    "read_summaries": True,
    "token_dropout": 0.5,
    "encoder_dropout": 0.2,
}


def test_a_configuration_without_the_newer_fields_is_recorded_and_read_as_ever():
    recorded = {
        "method": "hada",
        "token_dim": 512,
        "heads": 4,
        "activation": "elu",
        "hidden": 0,
        "output_dim": None,
        "dropout": 0.5,
        "start": "identity",
        "weighted_inputs": (),
    }
    assert TowerConfig().to_dict() == recorded
    assert list(TowerConfig().to_dict()) == list(recorded)
    assert TowerConfig.from_dict(recorded) == TowerConfig()


def test_newer_fields_are_recorded_where_they_are_set():
    config = dataclasses.replace(SMALL, start="random", **NEW)
    assert config.to_dict() == dataclasses.replace(SMALL, start="random").to_dict() | NEW
    assert TowerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"method": "hada-original", "layers": 2}, "layers can't be had with method 'hada-original'"),
        ({"method": "hada-original", "graph": "gcn"}, "graph can't be had with method 'hada-original'"),
        ({"method": "hada-original", "read_summaries": True}, "read_summaries can't be had with"),
        ({"token_dropout": 1.0}, r"token_dropout must lie in \[0, 1\), got 1.0"),
        ({"encoder_dropout": -0.5}, r"encoder_dropout must lie in \[0, 1\), got -0.5"),
        ({"graph": "gcn", "edges": "learned"}, "has no use for numbers on its edges"),
        ({"graph": "gcn", "edges": "original"}, "has no use for numbers on its edges"),
        ({"read_embeddings": False}, "read_embeddings=False leaves out; say start='random'"),
        ({"read_embeddings": False, "method": "concat-linear", "start": "random"}, "nothing to read"),
    ],
)
def test_impossible_graphs_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize("field", ["graph", "edges"])
def test_unknown_kinds_of_graph_are_refused(field):
    config = dataclasses.replace(SMALL)
    object.__setattr__(config, field, "unknown")  # past the type checks that only the tests have
    with pytest.raises(ConfigError, match=f"{field} must be .*, got 'unknown'"):
        config.__post_init__()


@pytest.mark.parametrize("method", METHODS)
def test_the_part_of_a_missing_encoder_is_zero(make_inputs, method):
    config = dataclasses.replace(SMALL, method=method, weighted_inputs=(1, 0))
    fuser = randomised(TowerFuser(config, SHAPES[:3]))
    first, second, third = make_inputs("image", SHAPES[:3])
    lacking = dataclasses.replace(first, present=torch.tensor([True, False, True]))
    vectors, complete = fuser.embed("image", [lacking, second, third]), fuser.embed("image", [first, second, third])
    torch.testing.assert_close(vectors[[0, 2]], complete[[0, 2]])
    assert vectors.isfinite().all()
    part = slice(fuser.fused_dim + SHAPES[1].dim, None)
    assert not vectors[1, part].any() and complete[1, part].any()
    torch.testing.assert_close(vectors[1, fuser.fused_dim : part.start], complete[1, fuser.fused_dim : part.start])
    assert (vectors[1, : fuser.fused_dim] - complete[1, : fuser.fused_dim]).abs().max() > 1e-3


def test_an_item_without_any_encoder_is_refused(make_inputs):
    nowhere = torch.tensor([True, True, False])
    inputs = [dataclasses.replace(each, present=nowhere) for each in make_inputs("image", SHAPES[:2])]
    with pytest.raises(DataError, match="item 2 of the batch lacks every encoder"):
        TowerFuser(SMALL, SHAPES[:2]).embed("image", inputs)


@pytest.mark.parametrize(
    ("method", "field", "drops"),
    [
        ("hada", "token_dropout", True),
        ("hada", "encoder_dropout", True),
        ("concat-linear", "token_dropout", False),
        ("concat-linear", "encoder_dropout", True),
    ],
)
def test_inputs_are_dropped_in_training_alone(make_inputs, method, field, drops):
    config = dataclasses.replace(SMALL, method=method, **{field: 0.7})
    fuser, inputs = randomised(TowerFuser(config, SHAPES[:2])), make_inputs("image", SHAPES[:2], batch=8)
    plain = randomised(TowerFuser(dataclasses.replace(SMALL, method=method), SHAPES[:2]))
    assert torch.equal(fuser("image", inputs), plain("image", inputs)) != drops
    assert torch.equal(fuser.eval()("image", inputs), plain("image", inputs))


def test_inputs_without_tokens_can_lose_an_encoder(make_inputs):
    config = dataclasses.replace(SMALL, method="concat-linear", token_dropout=0.5, encoder_dropout=0.5)
    inputs = [
        dataclasses.replace(each, tokens=each.tokens[:, :0], mask=each.mask[:, :0])
        for each in make_inputs("image", SHAPES[:2])
    ]
    assert TowerFuser(config, SHAPES[:2])("image", inputs).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_a_random_start_is_the_same_as_ever(method):
    """The newer options draw no random numbers where they aren't used."""
    torch.manual_seed(0)
    TowerFuser(dataclasses.replace(SMALL, method=method), SHAPES[:2])
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    TowerFuser(dataclasses.replace(SMALL, method=method, token_dropout=0.5, encoder_dropout=0.2), SHAPES[:2])
    assert torch.equal(torch.random.get_rng_state(), state)
