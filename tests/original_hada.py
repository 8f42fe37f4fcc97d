"""HADA's published code, retold for the tests from its description: graphs as explicit edge lists, run by PyG."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

with warnings.catch_warnings():
    # Importing PyG scripts some of its modules, which torch has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch_geometric.data import Batch, Data
    from torch_geometric.nn import GATv2Conv

MEAN, STD = -0.0006847491604276001, 0.036077868193387985
DROPPED = -1.0

Item = tuple[Tensor, Tensor, Tensor, Tensor]
"""The tokens of model 1 and of model 2 (raw, summary first), and their global embeddings."""


def random_items(
    lengths: Sequence[tuple[int, int]], widths: tuple[int, int], dims: tuple[int, int], seed: int = 0
) -> list[Item]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return [
        (
            3 * normal(first, widths[0]) + 0.1,
            normal(second, widths[1]),
            F.normalize(normal(dims[0]), dim=0),
            F.normalize(normal(dims[1]), dim=0),
        )
        for first, second in lengths
    ]


def random_state(
    widths: tuple[int, int], dims: tuple[int, int], dim: int, output: int, *, norms: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    """One encoder's weights under the published keys; `norms` as in the first stage, with statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    heads = 4

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    state: dict[str, Tensor] = {}

    def linear(key: str, inputs: int, outputs: int, norm: str | None) -> None:
        state[f"{key}.weight"] = normal(outputs, inputs) / inputs**0.5
        state[f"{key}.bias"] = 0.1 * normal(outputs)
        if norms and norm:
            batch_norm(norm, outputs)

    def batch_norm(key: str, width: int) -> None:
        state[f"{key}.weight"] = 1 + 0.3 * normal(width)
        state[f"{key}.bias"] = 0.2 * normal(width)
        state[f"{key}.running_mean"] = 0.3 * normal(width)
        state[f"{key}.running_var"] = 0.5 + normal(width).abs()
        state[f"{key}.num_batches_tracked"] = torch.tensor(17)

    for number, width in enumerate(widths, start=1):
        linear(f"enc.gcn.trans_{number}.linear.0", width, dim, f"enc.gcn.trans_{number}.norm.0")
    conv = "enc.gcn.gcn.conv.0"
    # Sharp enough for the attention to be far from a mean.
    state[f"{conv}.att"] = 4 * normal(1, heads, dim) / dim**0.5
    state[f"{conv}.bias"] = 0.1 * normal(heads * dim)
    linear(f"{conv}.lin_l", dim, heads * dim, None)
    linear(f"{conv}.lin_r", dim, heads * dim, None)
    state[f"{conv}.lin_edge.weight"] = normal(heads * dim, 1)
    linear("enc.gcn.gcn.conv_lin.0.linear.0", heads * dim, dim, "enc.gcn.gcn.conv_lin.0.norm.0")
    if norms:
        batch_norm("enc.gcn.gcn.norm.0", dim)
    linear("enc.lin.linear.0", 2 * dim + sum(dims), output, "enc.lin.norm.0")
    return state


def random_discriminator(output: int, *, norms: bool = False, seed: int = 9) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {
        "disc.linear.0.weight": torch.randn(1, 4 * output, generator=generator),
        "disc.linear.0.bias": torch.randn(1, generator=generator),
    }
    if norms:
        state |= {
            "disc.norm.0.weight": torch.tensor([1.4]),
            "disc.norm.0.bias": torch.tensor([-0.3]),
            "disc.norm.0.running_mean": torch.tensor([0.2]),
            "disc.norm.0.running_var": torch.tensor([2.5]),
            "disc.norm.0.num_batches_tracked": torch.tensor(17),
        }
    return state


def edges(first: int, second: int, between_features: float = DROPPED) -> tuple[Tensor, Tensor]:
    """The published edge list of an item's graph and its attributes, in their order."""
    own, summary, cross = 0.9, 1.1, 0.7
    c1, c2 = 0, first
    f1, f2 = list(range(1, first)), list(range(first + 1, first + second))
    listed: list[tuple[int, int, float]] = []
    for features, centre in ((f1, c1), (f2, c2)):
        listed += [(node, centre, own) for node in features]
        listed += [(node, node, own) for node in features]
        listed += [(centre, centre, summary)]
    listed += [(c1, c2, summary), (c2, c1, summary)]
    listed += [(node, c2, cross) for node in f1]
    listed += [(node, c1, cross) for node in f2]
    listed += [(a, b, between_features) for a in f1 for b in f2]
    listed += [(b, a, between_features) for a in f1 for b in f2]
    kept = [edge for edge in listed if edge[2] != DROPPED]
    index = torch.tensor([edge[:2] for edge in kept]).T
    return index, torch.tensor([edge[2] for edge in kept])


def embed(
    state: dict[str, Tensor],
    items: Sequence[Item],
    *,
    between_features: float = DROPPED,
    mixed_tokens: bool = False,
) -> Tensor:
    """The published encoder's unit-norm embeddings of a batch, in evaluation mode.

    With `mixed_tokens` model 1's packed tokens are given to model 2's branch, and cut by model 2's counts.
    """

    def linear(rows: Tensor, key: str, norm: str | None) -> Tensor:
        rows = F.linear(rows, state[f"{key}.weight"], state[f"{key}.bias"])
        return rows if norm is None else batch_norm(rows, norm)

    def batch_norm(rows: Tensor, key: str) -> Tensor:
        if f"{key}.running_mean" not in state:
            return rows
        statistics = state[f"{key}.running_mean"], state[f"{key}.running_var"]
        return F.batch_norm(rows, *statistics, state[f"{key}.weight"], state[f"{key}.bias"], training=False)

    def standardised(vectors: Tensor) -> Tensor:
        return (F.normalize(vectors, dim=-1) - MEAN) / STD

    counts = torch.tensor([[len(item[0]), len(item[1])] for item in items])
    packed = [standardised(torch.cat([item[model] for item in items])) for model in (0, 1)]
    if mixed_tokens:
        packed[1] = packed[0]
    mapped = [
        linear(rows, f"enc.gcn.trans_{model}.linear.0", f"enc.gcn.trans_{model}.norm.0")
        for model, rows in enumerate(packed, start=1)
    ]
    starts = counts.cumsum(0) - counts
    graphs = []
    for count, start in zip(counts.tolist(), starts.tolist(), strict=True):
        nodes = torch.cat([mapped[model][start[model] : start[model] + count[model]] for model in (0, 1)])
        index, attributes = edges(*count, between_features)
        graphs.append(Data(x=nodes, edge_index=index, edge_attr=attributes[:, None]))
    batch: Any = Batch.from_data_list(graphs)
    prefix = "enc.gcn.gcn.conv.0."
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    heads, dim = weights["att"].shape[1:]
    conv = GATv2Conv(dim, dim, heads=heads, concat=True, negative_slope=0.2, edge_dim=1, add_self_loops=True)
    conv.load_state_dict(weights)
    updated = conv(batch.x, batch.edge_index, batch.edge_attr)
    updated = linear(updated, "enc.gcn.gcn.conv_lin.0.linear.0", "enc.gcn.gcn.conv_lin.0.norm.0")
    updated = batch_norm(updated, "enc.gcn.gcn.norm.0")
    c1 = batch.ptr[:-1]
    c2 = c1 + counts[:, 0]
    globals_ = [standardised(torch.stack([item[2 + model] for item in items])) for model in (0, 1)]
    joined = torch.cat([updated[c1], *globals_, updated[c2]], dim=1)
    return F.normalize(linear(joined, "enc.lin.linear.0", "enc.lin.norm.0"), dim=1)


def discriminate(state: dict[str, Tensor], image: Tensor, text: Tensor) -> Tensor:
    """The published discriminator's probabilities of matching, in evaluation mode."""
    joined = torch.cat([image, text, (image - text).abs(), image * text], dim=1)
    logit = F.linear(joined, state["disc.linear.0.weight"], state["disc.linear.0.bias"])
    if "disc.norm.0.running_mean" in state:
        norm = nn.BatchNorm1d(1).eval()
        norm.load_state_dict({key.rsplit(".", 1)[1]: value for key, value in state.items() if "norm" in key})
        logit = norm(logit)
    return logit.sigmoid().squeeze(1)
