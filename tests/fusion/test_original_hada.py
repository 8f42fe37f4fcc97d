"""The authors' HADA layers against their published computation, run by PyG on explicit edge lists."""

import json
from dataclasses import replace

import original_hada as published
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modalloy.errors import ConfigError, DataError
from modalloy.fusion import EncoderFeatures, InputShape, TowerConfig, TowerFuser, input_shapes
from modalloy.fusion.losses import MatchingHead
from modalloy.fusion.original_hada import FirstStageMatchingHead, OriginalHadaConfig, OriginalHadaTower
from modalloy.fusion.star_graph import StarGATv2
from modalloy.training.fusion import fit_fuser
from modalloy.training.fusion_training import FusionTraining

WIDTHS, DIMS, DIM, OUTPUT = (6, 5), (3, 4), 8, 7
SHAPES = [InputShape(3, 6, 6), InputShape(4, 5, 5)]
CONFIG = TowerConfig("hada-original", token_dim=DIM, heads=4, output_dim=OUTPUT, dropout=0.5)
FIRST_STAGE = replace(CONFIG, original=OriginalHadaConfig(norm="batch"))
LENGTHS = [(9, 2), (4, 7), (1, 1), (5, 1), (1, 3)]
OURS = {
    "enc.gcn.trans_1.linear.0": "project.0.linear",
    "enc.gcn.trans_1.norm.0": "project.0.norm",
    "enc.gcn.trans_2.linear.0": "project.1.linear",
    "enc.gcn.trans_2.norm.0": "project.1.norm",
    "enc.gcn.gcn.conv.0": "graph",
    "enc.gcn.gcn.conv_lin.0.linear.0": "merge.linear",
    "enc.gcn.gcn.conv_lin.0.norm.0": "merge.norm",
    "enc.gcn.gcn.norm.0": "graph_norm",
    "enc.lin.linear.0": "output.linear",
    "enc.lin.norm.0": "output.norm",
}


def tower_of(
    state: dict[str, Tensor],
    config: OriginalHadaConfig | None = None,
    widths: tuple[int, int] = WIDTHS,
    dims: tuple[int, int] = DIMS,
) -> OriginalHadaTower:
    dim, output = state["enc.gcn.trans_1.linear.0.bias"].numel(), state["enc.lin.linear.0.bias"].numel()
    tower = OriginalHadaTower(dims, widths, dim, 4, output, 0.5, config or OriginalHadaConfig())
    renamed = {}
    for key, value in state.items():
        theirs = max((prefix for prefix in OURS if key.startswith(f"{prefix}.")), key=len)
        renamed[OURS[theirs] + key.removeprefix(theirs)] = value
    tower.load_state_dict(renamed)
    return tower.eval()


def features_of(items: list[published.Item], padding: int = 0) -> list[EncoderFeatures]:
    inputs = []
    for model in (0, 1):
        lengths = torch.tensor([len(item[model]) for item in items])
        tokens = torch.full((len(items), int(lengths.max()) + padding, items[0][model].shape[1]), 7.0)
        for row, item in enumerate(items):
            tokens[row, : len(item[model])] = item[model]
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        inputs.append(EncoderFeatures(torch.stack([item[2 + model] for item in items]), tokens, mask))
    return inputs


@pytest.mark.parametrize("norms", [False, True], ids=["second stage", "first stage"])
def test_it_gives_the_published_embeddings(norms):
    state = published.random_state(WIDTHS, DIMS, DIM, OUTPUT, norms=norms)
    items = published.random_items(LENGTHS, WIDTHS, DIMS)
    tower = tower_of(state, OriginalHadaConfig(norm="batch" if norms else "none"))
    expected = published.embed(state, items)
    torch.testing.assert_close(tower(features_of(items)), expected, rtol=0, atol=1e-5)
    # Edges between tokens other than summaries reach no summary token.
    between = published.embed(state, items, between_features=0.4)
    torch.testing.assert_close(between, expected, rtol=0, atol=1e-6)


def test_it_gives_the_published_embeddings_at_the_published_size():
    widths, dims = (768, 768), (256, 768)
    state = published.random_state(widths, dims, 512, 512)
    items = published.random_items([(577, 37), (577, 11)], widths, dims)
    tower = tower_of(state, widths=widths, dims=dims)
    assert sum(parameter.numel() for parameter in tower.parameters()) == 4_993_024
    expected = published.embed(state, items)
    torch.testing.assert_close(tower(features_of(items)), expected, rtol=0, atol=1e-5)
    # Hundreds of tokens don't drown the edges' numbers.
    other = tower_of(state, OriginalHadaConfig(cross_edge=0.9), widths, dims)
    assert (other(features_of(items)) - expected).abs().max() > 1e-3
    # Features are stored in half precision.
    rounded = [(first.half().float(), second.half().float(), *globals_) for first, second, *globals_ in items]
    torch.testing.assert_close(tower(features_of(rounded)), expected, rtol=0, atol=1e-4)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    norms=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25)
def test_it_gives_the_published_embeddings_of_any_batch(lengths, padding, norms, seed):
    state = published.random_state(WIDTHS, DIMS, DIM, OUTPUT, norms=norms, seed=seed)
    items = published.random_items(lengths, WIDTHS, DIMS, seed)
    tower = tower_of(state, OriginalHadaConfig(norm="batch" if norms else "none"))
    embedded = tower(features_of(items, padding))
    torch.testing.assert_close(embedded, published.embed(state, items), rtol=0, atol=1e-5)
    alone = torch.cat([tower(features_of([item])) for item in items])
    torch.testing.assert_close(alone, embedded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("field", ["own_edge", "cross_edge", "summary_edge", "mean", "std"])
def test_each_constant_counts(field):
    state = published.random_state(WIDTHS, DIMS, DIM, OUTPUT)
    inputs = features_of(published.random_items(LENGTHS[:2], WIDTHS, DIMS))
    other = replace(OriginalHadaConfig(), **{field: 0.25})
    assert (tower_of(state)(inputs) - tower_of(state, other)(inputs)).abs().max() > 1e-3


def test_a_summary_tokens_own_edge_carries_the_mean_of_its_others():
    inputs = features_of(published.random_items([(3, 2), (1, 1)], WIDTHS, DIMS))
    tower = tower_of(published.random_state(WIDTHS, DIMS, DIM, OUTPUT))
    edges = tower.edges(torch.cat([features.mask for features in inputs], dim=1), [3, 2])
    first = [[(2 * 0.9 + 1.1 + 0.7) / 4, 0.9, 0.9, 1.1, 0.7], [1.1, 0.7, 0.7, (0.9 + 1.1 + 2 * 0.7) / 4, 0.9]]
    torch.testing.assert_close(edges[0], torch.tensor(first))
    assert edges[1, 0, [0, 3]].tolist() == edges[1, 1, [0, 3]].tolist() == pytest.approx([1.1, 1.1])


MIXED = OriginalHadaConfig(second_tokens="first")


def test_the_mixed_up_tokens_are_the_published_ones():
    state = published.random_state((6, 6), DIMS, DIM, OUTPUT)
    items = published.random_items([(9, 2), (4, 7), (6, 6), (5, 8)], WIDTHS, DIMS)
    tower = tower_of(state, MIXED)
    expected = published.embed(state, items, mixed_tokens=True)
    torch.testing.assert_close(tower(features_of(items, padding=2)), expected, rtol=0, atol=1e-5)
    # The first item's don't depend on the others; the second's are cut elsewhere when it comes alone.
    torch.testing.assert_close(tower(features_of(items[:1])), expected[:1], rtol=0, atol=1e-5)
    assert (tower(features_of(items[2:3])) - expected[2:3]).norm() > 1e-2


def test_a_batch_that_the_published_mix_up_cannot_take_is_refused():
    state = published.random_state((6, 6), DIMS, DIM, OUTPUT)
    items = published.random_items([(2, 2), (3, 4)], WIDTHS, DIMS)
    with pytest.raises(DataError, match=r"second encoder has 6 tokens.*only 5.*lavis='repaired'"):
        tower_of(state, MIXED)(features_of(items))


@pytest.mark.parametrize("config", [CONFIG, FIRST_STAGE], ids=["second stage", "first stage"])
def test_it_trains(config):
    torch.manual_seed(0)
    fuser = TowerFuser(config, SHAPES).train()
    inputs = features_of(published.random_items([(9, 2), (4, 7), (3, 5)], WIDTHS, DIMS))
    image, text = fuser("image", inputs), fuser("text", inputs)
    assert not torch.equal(image, fuser("image", inputs))
    loss = (image @ text.T).logsumexp(0).sum() + fuser.matching(image, text).square().sum()
    loss.backward()
    for name, parameter in (*fuser.towers.named_parameters(), *fuser.matching.named_parameters()):
        # A bias before a BatchNorm only moves what the norm takes off again.
        if config is CONFIG or parameter.ndim > 1:
            assert parameter.grad is not None and parameter.grad.norm() > 1e-8, name
    fuser.eval()
    assert torch.equal(fuser("image", inputs), fuser("image", inputs))


def test_training_lowers_a_loss():
    torch.manual_seed(0)
    fuser = TowerFuser(replace(CONFIG, dropout=0.0), SHAPES).train()
    image = features_of(published.random_items([(4, 2), (2, 3), (3, 3), (2, 2)], WIDTHS, DIMS))
    text = features_of(published.random_items([(3, 3), (2, 4), (3, 2), (5, 2)], WIDTHS, DIMS, seed=1))
    optimiser = torch.optim.Adam(fuser.parameters(), lr=0.01)

    def loss() -> Tensor:
        logits = fuser("image", image) @ fuser("text", text).T / 0.07
        return nn.functional.cross_entropy(logits, torch.arange(4))

    start = loss().item()
    for _ in range(30):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
    assert loss().item() < 0.1 * start


def test_dropout_stands_where_the_authors_have_it():
    second, first = TowerFuser(CONFIG, SHAPES), TowerFuser(FIRST_STAGE, SHAPES)
    for fuser, tokens, output in ((second, 0.0, 0.5), (first, 0.5, 0.25)):
        tower = fuser.towers["text"]
        assert [layer.dropout.p for layer in tower.project] == [tokens, tokens]
        assert (tower.graph.dropout, tower.merge.dropout.p, tower.output.dropout.p) == (0.5, 0.5, output)
    everything = torch.ones(4000, 4 * DIM)
    torch.manual_seed(0)
    # Before the linear layer the outputs are shared out; after it, half of them are zero.
    assert (second.towers["text"].merge.train()(everything) == 0).float().mean() < 0.01
    rows = torch.randn(4000, 4 * DIM)
    assert (first.towers["text"].merge.train()(rows) == 0).float().mean() == pytest.approx(0.5, abs=0.02)
    assert isinstance(first.matching, FirstStageMatchingHead)
    assert type(second.matching) is MatchingHead


def test_the_first_stage_counts_no_padding_in_its_statistics():
    torch.manual_seed(0)
    tower = TowerFuser(replace(FIRST_STAGE, dropout=0.0), SHAPES).towers["image"].train()
    items = published.random_items([(4, 2), (2, 3)], WIDTHS, DIMS)
    tower(features_of(items))
    rows = (nn.functional.normalize(torch.cat([item[0] for item in items]), dim=-1) - published.MEAN) / published.STD
    torch.testing.assert_close(tower.project[0].norm.running_mean, 0.1 * tower.project[0].linear(rows).mean(0))


def test_a_second_stage_follows_the_first():
    first = TowerFuser(FIRST_STAGE, SHAPES).eval()
    inputs = features_of(published.random_items(LENGTHS, WIDTHS, DIMS))
    second = first.second_stage([0]).eval()
    assert torch.equal(second("image", inputs), first("image", inputs))
    assert second.config == replace(FIRST_STAGE, weighted_inputs=(0,))


@pytest.mark.parametrize("config", [CONFIG, FIRST_STAGE, TowerConfig(weighted_inputs=(1, 0))])
def test_a_configuration_survives_json(config):
    assert TowerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_other_methods_do_not_record_the_authors_constants():
    assert "original" not in TowerConfig().to_dict()
    assert "original" in CONFIG.to_dict()


@pytest.mark.parametrize(
    ("field", "value"), [("norm", "layer"), ("second_tokens", "third"), ("std", 0.0), ("std", float("nan"))]
)
def test_impossible_settings_are_refused(field, value):
    config = OriginalHadaConfig()
    object.__setattr__(config, field, value)  # past the type checks that only the tests have
    with pytest.raises(ConfigError, match=f"{field} must be"):
        config.__post_init__()


def test_it_needs_both_encoders_of_every_item():
    fuser = TowerFuser(CONFIG, SHAPES)
    first, second = features_of(published.random_items([(3, 2), (1, 1)], WIDTHS, DIMS))
    everywhere = replace(first, present=torch.tensor([True, True]))
    assert fuser("image", [everywhere, second]).isfinite().all()
    with pytest.raises(DataError, match="needs both encoders of every item"):
        fuser("image", [replace(first, present=torch.tensor([True, False])), second])
    with pytest.raises(ConfigError, match="encoder_dropout can't be had"):
        replace(CONFIG, encoder_dropout=0.1)


def test_it_takes_two_encoders():
    with pytest.raises(ConfigError, match="fuses two encoders, got 3"):
        TowerFuser(CONFIG, [*SHAPES, SHAPES[0]])


def edge_layer() -> tuple[StarGATv2, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = StarGATv2(3, heads=2, head_dim=2, edge_attributes=True).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(3, 5, 3, dtype=torch.double)
    mask = torch.tensor([[True] * 5, [True, False, True, True, True], [True, True, True, True, False]])
    return layer, tokens, mask, torch.rand(3, 2, 5, dtype=torch.double)


def test_gradients_of_edge_attributes():
    layer, tokens, mask, edges = edge_layer()
    names = list(dict(layer.named_parameters()))

    def updated(tokens: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, named, (tokens, mask, [0, 2]), {"edges": edges})

    assert torch.autograd.gradcheck(updated, [tokens.requires_grad_(), *layer.parameters()])


def test_equal_edges_are_no_edges_with_a_bias_more():
    layer, tokens, mask, edges = edge_layer()
    plain = StarGATv2(3, heads=2, head_dim=2).double()
    state = layer.state_dict()
    constant = 0.3 * state.pop("lin_edge.weight")[:, 0]
    state["lin_r.bias"] = state["lin_r.bias"] + constant
    plain.load_state_dict(state)
    updated = layer(tokens, mask, [0, 2], edges=torch.full_like(edges, 0.3))
    torch.testing.assert_close(updated, plain(tokens, mask, [0, 2]))


def test_edges_and_the_layer_must_agree():
    layer, tokens, mask, edges = edge_layer()
    with pytest.raises(ConfigError, match="edge_attributes=True"):
        layer(tokens, mask, [0, 2])
    plain = StarGATv2(3, heads=2, head_dim=2).double()
    with pytest.raises(ConfigError, match="edge_attributes=True"):
        plain(tokens, mask, [0, 2], edges=edges)


@pytest.mark.parametrize("config", [CONFIG, FIRST_STAGE], ids=["second stage", "first stage"])
def test_a_training_of_both_stages_runs_and_is_saved(config, make_encoder, make_collection, make_paired, tmp_path):
    encoders = [make_encoder(0), make_encoder(1)]
    paired = make_paired(make_collection(tmp_path / "pictures", {"train": 7, "val": 3}), tmp_path / "f", encoders)
    torch.manual_seed(0)
    fuser = TowerFuser(config, input_shapes(paired.image, paired.text))
    training = FusionTraining(epochs=2, batch_size=3)
    for stage, trained in (("one", fuser), ("two", fuser.second_stage([1]))):
        history = fit_fuser(trained, training, paired.split("train"), paired.split("val"), tmp_path / stage, stage)
        assert len(history) == 3
    buffers = list(fuser.towers.buffers())
    assert bool(buffers) == (config is FIRST_STAGE)
    assert all(torch.isfinite(each).all() for each in fuser.state_dict().values())
