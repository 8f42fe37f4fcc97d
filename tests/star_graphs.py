"""Batches of star graphs, and what PyG's layers make of them on explicit edge lists."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    # Importing PyG scripts some of its modules, which torch has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch_geometric.nn import GATv2Conv, GCNConv, TransformerConv

from modalloy.fusion.star_gcn import StarGCN
from modalloy.fusion.star_graph import StarGATv2
from modalloy.fusion.star_layer import StarLayer
from modalloy.fusion.star_transformer import StarTransformer

LENGTHS = {
    "one item": [(7, 4)],
    "same lengths": [(9, 5)] * 3,
    "variable lengths": [(9, 2), (9, 7), (9, 1), (9, 4)],
    "CLS alone": [(1, 1), (1, 1)],
    "three encoders": [(6, 3, 4), (2, 8, 1)],
}


def random_batch(lengths: Sequence[Sequence[int]], dim: int, seed: int = 0) -> tuple[Tensor, Tensor, list[int]]:
    """Tokens [encoder 1 padded | encoder 2 padded | ...], `lengths[item][encoder]` of them real."""
    generator = torch.Generator().manual_seed(seed)
    padded = [max(item[encoder] for item in lengths) for encoder in range(len(lengths[0]))]
    targets = [sum(padded[:encoder]) for encoder in range(len(padded))]
    tokens = torch.randn(len(lengths), sum(padded), dim, generator=generator)
    mask = torch.zeros(len(lengths), sum(padded), dtype=torch.bool)
    for item, encoders in enumerate(lengths):
        for start, length in zip(targets, encoders, strict=True):
            mask[item, start : start + length] = True
    return tokens, mask, targets


def randomised(layer: StarLayer, dim: int) -> StarLayer:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=dim**-0.5)
    return layer


def pyg_twin(layer: StarLayer) -> nn.Module:
    """PyG's layer with the same weights."""
    edge_dim = None if layer.lin_edge is None else 1
    if isinstance(layer, StarGATv2):
        dim = layer.lin_l.in_features
        twin: nn.Module = GATv2Conv(
            dim,
            layer.head_dim,
            heads=layer.heads,
            negative_slope=layer.negative_slope,
            add_self_loops=False,
            bias=layer.bias is not None,
            share_weights=layer.lin_l is layer.lin_r,
            edge_dim=edge_dim,
        )
    elif isinstance(layer, StarTransformer):
        twin = TransformerConv(layer.lin_key.in_features, layer.head_dim, heads=layer.heads, edge_dim=edge_dim)
    else:
        assert isinstance(layer, StarGCN)
        twin = GCNConv(layer.lin.in_features, layer.lin.out_features)
    twin.load_state_dict(layer.state_dict())
    return twin.to(next(layer.parameters()).dtype)


def pyg_star(
    twin: nn.Module, tokens: Tensor, mask: Tensor, targets: Sequence[int], edges: Tensor | None = None
) -> Tensor:
    """PyG's output at the CLS nodes of the batched graphs made of the real tokens only."""
    node = torch.full(mask.shape, -1)
    node[mask] = torch.arange(int(mask.sum()))
    listed = [
        (item, token, encoder)
        for item, token in mask.nonzero().tolist()
        for encoder, target in enumerate(targets)
        if mask[item, target]
    ]
    items, sources, encoders = torch.tensor(listed).T
    index = torch.stack([node[items, sources], node[items, torch.tensor(targets)[encoders]]])
    carried = {} if edges is None else {"edge_attr": edges[items, encoders, sources][:, None]}
    return twin(tokens[mask], index, **carried)[node[:, list(targets)]]


def assert_equals_pyg(
    layer: StarLayer, lengths: Sequence[Sequence[int]], dim: int, edges: Tensor | None = None
) -> None:
    """The same results, and the same gradients of tokens, edges and parameters."""
    twin = pyg_twin(layer)
    tokens, mask, targets = random_batch(lengths, dim)
    tokens = tokens.to(next(layer.parameters()).dtype)
    ours_leaves = [tokens.clone().requires_grad_(), *(() if edges is None else (edges.clone().requires_grad_(),))]
    theirs_leaves = [leaf.detach().clone().requires_grad_() for leaf in ours_leaves]
    ours = layer(ours_leaves[0], mask, targets, edges=None if edges is None else ours_leaves[1])
    theirs = pyg_star(twin, theirs_leaves[0], mask, targets, None if edges is None else theirs_leaves[1])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    upstream = torch.randn(ours.shape, dtype=ours.dtype)
    ours.backward(upstream)
    theirs.backward(upstream)
    for mine, other in zip(ours_leaves, theirs_leaves, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)
    gradients = dict(twin.named_parameters())
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()
