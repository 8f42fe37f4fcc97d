"""HADA as its authors' code computes it, for the benchmarks; written from the description of what that code does.

Every item is a graph of its own: its tokens are appended to the batch's nodes one item after the other (quadratic),
its edges listed; PyG's GATv2Conv and the linear layer after it update every node, and two rows an item are read.
Standardisation of the tokens is modalloy's (root mean square), so that both give the same numbers. Needs torch-
geometric.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv

from modalloy.fusion import EncoderFeatures
from modalloy.fusion.hada import HadaTower


class FullGraphTower(nn.Module):
    """An encoder with the weights of `tower`, whose graph has no edge attributes: all are 0 here."""

    def __init__(self, tower: HadaTower) -> None:
        super().__init__()
        graph = tower.graph
        dim = graph.head_dim
        self.project = nn.ModuleList(nn.Linear(each.in_features, dim) for each in tower.project)
        self.graph = GATv2Conv(dim, dim, heads=graph.heads, edge_dim=1)
        self.merge = nn.Linear(graph.heads * dim, dim)
        self.output = nn.Linear(tower.output.linear.in_features, tower.output.linear.out_features)
        self.project.load_state_dict(tower.project.state_dict())
        self.graph.load_state_dict(tower.graph.state_dict(), strict=False)
        self.merge.load_state_dict(tower.merge[1].state_dict())
        self.output.load_state_dict(tower.output.linear.state_dict())

    def forward(self, inputs: list[EncoderFeatures]) -> Tensor:
        """Unit-norm vectors of a batch."""
        projected = [
            project(F.rms_norm(each.tokens, each.tokens.shape[-1:], eps=1e-6))
            for each, project in zip(inputs, self.project, strict=True)
        ]
        lengths = [each.mask.sum(1).tolist() for each in inputs]
        nodes, edges, targets = projected[0].new_empty(0, projected[0].shape[-1]), [], []
        for item in range(len(projected[0])):
            counts = [length[item] for length in lengths]
            first, start = [], len(nodes)
            for tokens, count in zip(projected, counts, strict=True):
                first.append(len(nodes))
                nodes = torch.cat([nodes, tokens[item, :count]])
            edges += [(node, target) for target in first for node in range(start, len(nodes))]
            targets += first
        edge_index = torch.tensor(edges, device=nodes.device).T
        attributes = nodes.new_zeros(len(edges), 1)
        updated = self.merge(self.graph(nodes, edge_index, attributes))[targets]
        parts = [*(each.embedding for each in inputs), updated.view(len(projected[0]), -1)]
        return F.normalize(self.output(torch.cat(parts, dim=-1)), dim=-1)
