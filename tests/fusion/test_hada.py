"""HADA's tower against its composition from PyG's layer, and what a batch must not change."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from star_graphs import pyg_twin
from torch import Tensor, nn

from modalloy.errors import DataError
from modalloy.fusion import EncoderFeatures
from modalloy.fusion.edges import LearnedEdges
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


def edge_numbers(tower: HadaTower, owners: list[int], targets: list[int]) -> Tensor | None:
    """The number from each node to each target, given the encoder of each node."""
    if tower.edges is None:
        return None
    rows = []
    for source, owner in enumerate(owners):
        for encoder, target in enumerate(targets):
            if isinstance(tower.edges, LearnedEdges):
                rows.append(tower.edges.table[encoder, owner + len(targets) * (source in targets)])
            elif source == target:
                others = len([node for node in owners if node == encoder]) - 1
                summaries = len(targets) - 1
                numbers = [0.9] * others + [1.1] * summaries + [0.7] * (len(owners) - 1 - others - summaries)
                rows.append(torch.tensor(sum(numbers) / len(numbers)))
            else:
                rows.append(torch.tensor(0.9 if owner == encoder else 1.1 if source in targets else 0.7))
    return torch.stack(rows)[:, None]


def composition(tower: HadaTower, inputs: list[EncoderFeatures]) -> Tensor:
    """The same tower, item by item on the real tokens alone, with PyG's layers."""
    layers = list(
        zip([tower.graph, *tower.later_graphs], [tower.merge, *tower.later_merges], strict=True),
    )
    vectors = []
    for item in range(len(inputs[0].embedding)):
        nodes: list[Tensor] = []
        owners: list[int] = []
        summaries = []
        for encoder, (features, project) in enumerate(zip(inputs, tower.project, strict=True)):
            summaries.append(len(owners))
            tokens = features.tokens[item][features.mask[item]]
            tokens = tokens / (tokens.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
            nodes.append(tokens @ project.weight.T + project.bias)
            owners += [encoder] * len(tokens)
        graph = torch.cat(nodes)
        edges = torch.tensor([(source, target) for source in range(len(graph)) for target in summaries]).T
        numbers = edge_numbers(tower, owners, summaries)
        for position, (layer, merge) in enumerate(layers):
            updated = pyg_twin(layer)(graph, edges, *(() if numbers is None else (numbers,)))[summaries]
            if isinstance(tower.activation, nn.ELU):
                updated = torch.where(updated > 0, updated, updated.exp() - 1)
            merged = updated @ merge[1].weight.T + merge[1].bias
            if len(layers) > 1:
                norm, total = tower.norms[position], graph[summaries] + merged
                centred = total - total.mean(-1, keepdim=True)
                deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
                merged = centred / deviation * norm.weight + norm.bias
            graph = graph.clone()
            graph[summaries] = merged
        read = [features.embedding[item] for features in inputs] if tower.read_embeddings else []
        own = [features.tokens[item, 0] for features in inputs] if tower.read_summaries else []
        joined = torch.cat([*read, *merged, *(token / token.norm() for token in own)])
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


# All layers, edges and depths, of two to eight encoders -------------------------------------------------------

KINDS = [
    (graph, edges, layers)
    for graph, edges, layers in product(["gatv2", "transformer", "gcn"], ["none", "learned", "original"], [1, 2])
    if graph != "gcn" or edges == "none"
]
kinds = pytest.mark.parametrize(("graph", "edges", "layers"), KINDS)
# Of each encoder the embedding's and the tokens' width, and the most tokens of an item: 1 is a summary alone.
MANY = [(3, 5, 4), (4, 7, 1), (2, 6, 6), (5, 3, 2), (2, 2, 1), (3, 4, 3), (1, 5, 5), (4, 4, 2)]


def any_tower(encoders: int, graph: str, edges: str, layers: int, **options: object) -> HadaTower:
    torch.manual_seed(0)
    dims, widths, _ = zip(*MANY[:encoders], strict=True)
    tower = HadaTower(dims, widths, 8, 2, 9, 0.0, "random", graph=graph, edges=edges, layers=layers, **options)
    for name, parameter in tower.named_parameters():
        nn.init.normal_(parameter, mean=float(name.startswith("norms") and name.endswith("weight")), std=0.4)
    return tower


def any_inputs(make_features, encoders: int, batch: int = 3) -> list[EncoderFeatures]:
    return [
        make_features(batch, dim, width, longest=longest, seed=k)
        for k, (dim, width, longest) in enumerate(MANY[:encoders])
    ]


@kinds
@pytest.mark.parametrize("encoders", [2, 3, 8])
def test_any_number_of_encoders_equals_the_composition_from_pyg(make_features, encoders, graph, edges, layers):
    tower, inputs = any_tower(encoders, graph, edges, layers), any_inputs(make_features, encoders)
    ours, theirs = tower(inputs), composition(tower, inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    upstream = torch.randn(ours.shape)
    # PyG's layers are copies, so the graph's own gradients are compared through what comes before: the projections.
    before = list(tower.project.parameters()) + ([tower.edges.table] if edges == "learned" else [])
    for got, wanted in zip(
        torch.autograd.grad(ours, before, upstream), torch.autograd.grad(theirs, before, upstream), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


@kinds
@pytest.mark.parametrize("encoders", [4, 5, 6, 7])
def test_order_padding_and_batch_change_nothing(make_features, encoders, graph, edges, layers):
    tower, inputs = any_tower(encoders, graph, edges, layers), any_inputs(make_features, encoders)
    vectors = tower(inputs)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(tower(select(inputs, rows)), vectors[rows])
    changed = []
    for features in inputs:
        order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(features.tokens.shape[1] - 1)])
        tokens = torch.cat([features.tokens[:, order], torch.full((3, 2, features.tokens.shape[2]), 7.0)], dim=1)
        changed.append(EncoderFeatures(features.embedding, tokens, nn.functional.pad(features.mask[:, order], (0, 2))))
    torch.testing.assert_close(tower(changed), vectors)


@kinds
def test_every_parameter_of_every_kind_learns(make_features, graph, edges, layers):
    tower = any_tower(3, graph, edges, layers)
    (tower(any_inputs(make_features, 3)) @ torch.randn(9)).sum().backward()
    for name, parameter in tower.named_parameters():
        # What is the same for all sources moves no softmax.
        if not name.endswith("lin_key.bias"):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@kinds
def test_an_item_without_an_encoder_is_fused_from_the_others(make_features, graph, edges, layers):
    tower, inputs = any_tower(3, graph, edges, layers), any_inputs(make_features, 3)
    present = torch.tensor([True, False, True])
    lacking = [inputs[0], replace(inputs[1], present=present), inputs[2]]
    vectors = tower(lacking)
    assert vectors.isfinite().all()
    torch.testing.assert_close(vectors[[0, 2]], tower(inputs)[[0, 2]])
    assert (vectors[1] - tower(inputs)[1]).abs().max() > 1e-3
    # Whatever stands in its place.
    nothing = EncoderFeatures(
        inputs[1].embedding.masked_fill(~present[:, None], torch.nan),
        inputs[1].tokens.masked_fill(~present[:, None, None], torch.nan),
        inputs[1].mask & present[:, None],
        present,
    )
    torch.testing.assert_close(tower([inputs[0], nothing, inputs[2]]), vectors)
    for each in tower.attention([inputs[0], nothing, inputs[2]]):
        assert each.isfinite().all()
    assert not tower.attention(lacking)[1][1].any()


@pytest.mark.parametrize("graph", ["gatv2", "transformer", "gcn"])
def test_of_several_layers_the_others_tokens_are_read_anew(make_features, graph):
    """The second layer of a summary sees what the first made of the other summaries."""
    tower, inputs = any_tower(2, graph, "none", 2), any_inputs(make_features, 2)
    tower.attention(inputs)
    with torch.no_grad():
        before = tower(inputs)
        tower.merge[1].weight.zero_()
    assert (tower(inputs) - before).abs().max() > 1e-3


def test_one_layers_weights_keep_their_names():
    names = {name.split(".")[0] for name in any_tower(2, "gatv2", "none", 1).state_dict()}
    assert names == {"project", "graph", "merge", "output"}


def test_the_output_may_read_what_the_graph_learned_alone(make_features):
    tower, inputs = any_tower(3, "gatv2", "none", 1, read_embeddings=False), any_inputs(make_features, 3)
    assert tower.output.linear.in_features == 3 * 8
    torch.testing.assert_close(tower(inputs), composition(tower, inputs), rtol=1e-4, atol=1e-5)
    other = [replace(features, embedding=torch.rand_like(features.embedding)) for features in inputs]
    assert torch.equal(tower(other), tower(inputs))


@pytest.mark.parametrize("read_embeddings", [True, False])
def test_the_output_may_read_the_summaries_past_the_graph(make_features, read_embeddings):
    tower = any_tower(3, "gatv2", "none", 1, read_embeddings=read_embeddings, read_summaries=True)
    inputs = any_inputs(make_features, 3)
    torch.testing.assert_close(tower(inputs), composition(tower, inputs), rtol=1e-4, atol=1e-5)
