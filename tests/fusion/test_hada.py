"""HADA's tower against its composition from PyG's layer, and what a batch must not change."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from modalloy.errors import DataError
from modalloy.fusion import EncoderFeatures
from modalloy.fusion.hada import HadaTower

WIDTHS = {2: [(3, 5), (4, 7)], 3: [(3, 5), (4, 7), (2, 6)], 4: [(3, 5), (4, 7), (2, 6), (5, 3)]}


def random_tower(encoders: int = 2, start: str = "random", dropout: float = 0.0, activation: str = "elu") -> HadaTower:
    torch.manual_seed(0)
    dims, widths = zip(*WIDTHS[encoders], strict=True)
    tower = HadaTower(dims, widths, 8, 2, sum(dims) + 1, dropout, start, activation)
    if start == "random":
        for parameter in tower.parameters():
            nn.init.normal_(parameter, std=0.4)
    return tower


@pytest.fixture
def make_inputs(make_features):
    def make(encoders: int = 2, batch: int = 4, scale: float = 1.0) -> list[EncoderFeatures]:
        return [
            make_features(batch, dim, width, longest=3 + k, seed=k, scale=scale)
            for k, (dim, width) in enumerate(WIDTHS[encoders])
        ]

    return make


def select(inputs: list[EncoderFeatures], rows: Tensor) -> list[EncoderFeatures]:
    return [EncoderFeatures(f.embedding[rows], f.tokens[rows], f.mask[rows]) for f in inputs]


def composition(tower: HadaTower, inputs: list[EncoderFeatures]) -> Tensor:
    """The same tower, item by item on the real tokens alone, with PyG's GATv2Conv."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch_geometric.nn import GATv2Conv
    conv = GATv2Conv(8, 8, heads=2, add_self_loops=False)
    conv.load_state_dict(tower.graph.state_dict())
    vectors = []
    for item in range(len(inputs[0].embedding)):
        nodes: list[Tensor] = []
        summaries = []
        for features, project in zip(inputs, tower.project, strict=True):
            summaries.append(sum(len(each) for each in nodes))
            tokens = features.tokens[item][features.mask[item]]
            tokens = tokens / (tokens.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
            nodes.append(tokens @ project.weight.T + project.bias)
        graph = torch.cat(nodes)
        edges = [(source, target) for source in range(len(graph)) for target in summaries]
        updated = conv(graph, torch.tensor(edges).T)[summaries]
        if isinstance(tower.activation, nn.ELU):
            updated = torch.where(updated > 0, updated, updated.exp() - 1)
        merge = tower.merge[1]
        merged = updated @ merge.weight.T + merge.bias
        joined = torch.cat([*(features.embedding[item] for features in inputs), *merged])
        vector = tower.output.linear.weight @ joined + tower.output.linear.bias
        vectors.append(vector / vector.norm())
    return torch.stack(vectors)


@pytest.mark.parametrize(("encoders", "activation"), [(2, "elu"), (2, "none"), (3, "elu"), (4, "none")])
def test_equals_its_composition_from_pyg(make_inputs, encoders, activation):
    tower, inputs = random_tower(encoders, activation=activation), make_inputs(encoders)
    ours, theirs = tower(inputs), composition(tower, inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(ours.shape)
    gradients = torch.autograd.grad(ours, list(tower.output.parameters()), upstream)
    expected = torch.autograd.grad(theirs, list(tower.output.parameters()), upstream)
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns(make_inputs):
    tower = random_tower(3, start="identity")
    (tower(make_inputs(3)) @ torch.randn(10)).sum().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_vectors_are_of_unit_norm(make_inputs):
    tower, inputs = random_tower(dropout=0.5), make_inputs()
    for module in (tower.train(), tower.eval()):
        torch.testing.assert_close(module(inputs).norm(dim=-1), torch.ones(4))


def test_padding_changes_nothing(make_inputs):
    tower, inputs = random_tower(), make_inputs()
    padded = [
        EncoderFeatures(
            features.embedding,
            torch.cat([features.tokens, torch.full((4, 2, features.tokens.shape[-1]), 1e3)], dim=1),
            torch.cat([features.mask, torch.zeros(4, 2, dtype=torch.bool)], dim=1),
        )
        for features in inputs
    ]
    torch.testing.assert_close(tower(padded), tower(inputs))


def test_an_items_vector_does_not_depend_on_its_batch(make_inputs):
    tower, inputs = random_tower(), make_inputs(batch=5)
    together = tower(inputs)
    alone = torch.cat([tower(select(inputs, torch.tensor([row]))) for row in range(5)])
    torch.testing.assert_close(alone, together)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(tower(select(inputs, order)), together[order])


def test_the_scale_of_an_encoders_tokens_does_not_matter(make_inputs):
    tower = random_tower()
    torch.testing.assert_close(tower(make_inputs(scale=300.0)), tower(make_inputs(scale=3.0)), rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_alone(make_inputs):
    tower, inputs = random_tower(dropout=0.5), make_inputs()
    assert not torch.equal(tower(inputs), tower(inputs))
    tower.eval()
    assert torch.equal(tower(inputs), tower(inputs))
    torch.testing.assert_close(tower(inputs), random_tower()(inputs))


@pytest.mark.parametrize("encoders", [2, 3])
def test_attention_is_a_distribution_over_all_encoders_real_tokens(make_inputs, encoders):
    tower, inputs = random_tower(encoders, dropout=0.5).eval(), make_inputs(encoders)
    attention = tower.attention(inputs)
    assert [tuple(each.shape) for each in attention] == [(4, encoders, 2, 3 + k) for k in range(encoders)]
    total = torch.stack([each.sum(dim=-1) for each in attention]).sum(dim=0)
    torch.testing.assert_close(total, torch.ones(4, encoders, 2))
    for each, features in zip(attention, inputs, strict=True):
        hidden = ~features.mask[:, None, None, :].expand_as(each)
        assert not each[hidden].any()
        assert (each[~hidden] > 0).all()
        assert not each.requires_grad


def test_an_item_without_tokens_is_refused(make_inputs):
    first, second = make_inputs()
    mask = second.mask.clone()
    mask[2] = False
    with pytest.raises(DataError):
        random_tower()([first, replace(second, mask=mask)])
