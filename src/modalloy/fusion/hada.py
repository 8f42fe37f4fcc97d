"""HADA's encoder of one modality: a star graph over the tokens of all input encoders (arXiv 2301.04742, 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from modalloy.fusion.edges import LearnedEdges, OriginalEdges
from modalloy.fusion.inputs import EncoderFeatures, presence, unit_summaries
from modalloy.fusion.output import FusedOutput
from modalloy.fusion.star_gcn import StarGCN
from modalloy.fusion.star_graph import StarGATv2
from modalloy.fusion.star_layer import StarLayer
from modalloy.fusion.star_transformer import StarTransformer


class HadaTower(nn.Module):
    """Fuses the tokens and embeddings of N encoders into one unit-norm vector per item (HADA, section 3.2).

    Each encoder's tokens are mapped to a common width; in a star graph every token sends to the summary (CLS) token
    of every encoder; one GATv2 layer updates those N tokens, a linear layer merges their heads, and a last linear
    layer reads them beside the encoders' own embeddings.

    Beyond the paper, other graph layers can take GATv2's place, edges can carry numbers, and there can be several
    layers. Then each updates the summary tokens by summary <- LayerNorm(summary + merge(activation(graph(tokens)))),
    while the other tokens, to which nothing is sent, stay as they are. One layer has neither the sum nor the norm, as
    in the paper. An encoder that an item lacks sends nothing, and its summary token and embedding are read as zeros.

    Args:
        dims: the encoders' embedding widths.
        widths: the encoders' token widths in this modality.
        token_dim: the common token width d_p.
        heads: attention heads, each `token_dim` wide.
        output_dim: width of the fused vector.
        dropout: probability in the linear layers and on the attention.
        start: see `FusedOutput`.
        activation: "elu" or "none", on what the graph gives (the paper's sigma).
        graph: "gatv2", "transformer" or "gcn", the layer on the star graph.
        layers: how many of them.
        edges: "none", "learned" or "original", the numbers that edges carry; none for "gcn".
        read_embeddings: whether the last layer reads the encoders' embeddings beside the graph's tokens.
        read_summaries: whether it also reads the encoders' own summary tokens, as they were before the graph.
    """

    def __init__(
        self,
        dims: Sequence[int],
        widths: Sequence[int],
        token_dim: int,
        heads: int,
        output_dim: int,
        dropout: float,
        start: str,
        activation: str = "elu",
        graph: str = "gatv2",
        layers: int = 1,
        edges: str = "none",
        read_embeddings: bool = True,
        read_summaries: bool = False,
    ) -> None:
        super().__init__()

        def merge() -> nn.Module:
            return nn.Sequential(nn.Dropout(dropout), nn.Linear(heads * token_dim, token_dim))

        def layer() -> StarLayer:
            return _star_layer(graph, token_dim, heads, dropout, edges != "none")

        self.read_embeddings = read_embeddings
        self.read_summaries = read_summaries
        self.project = nn.ModuleList(nn.Linear(width, token_dim) for width in widths)
        self.graph = layer()
        self.activation = nn.ELU() if activation == "elu" else nn.Identity()
        self.merge = merge()
        learned_dim = len(dims) * token_dim + (sum(widths) if read_summaries else 0)
        self.output = FusedOutput(dims if read_embeddings else [], learned_dim, output_dim, dropout, start)
        self.edges = _edges(edges, len(dims))
        # Not in one list with the first: one layer's weights keep the names that they have always had.
        self.later_graphs = nn.ModuleList(layer() for _ in range(layers - 1))
        self.later_merges = nn.ModuleList(merge() for _ in range(layers - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(token_dim) for _ in range(layers if layers > 1 else 0))

    def forward(self, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch output"]:
        """Fuses a batch."""
        inputs = [features.known() for features in inputs]
        star = self._before_last(self._star(inputs))
        updated = self._summaries(star, len(self.later_graphs))
        if star.present is not None:
            updated = updated.masked_fill(~star.present[:, :, None], 0)
        embeddings = [features.embedding for features in inputs] if self.read_embeddings else []
        learned = [updated.flatten(1), *(unit_summaries(inputs) if self.read_summaries else [])]
        return self.output(embeddings, torch.cat(learned, dim=-1))

    @torch.no_grad()
    def attention(self, inputs: Sequence[EncoderFeatures]) -> list[Float[Tensor, "batch encoders heads _"]]:
        """How much each encoder's summary token attends to each token in the last layer, a tensor per source encoder.

        Of a GCN, whose weights aren't learned, the coefficients of its sum.
        """
        star = self._before_last(self._star([features.known() for features in inputs]))
        _, weights = [self.graph, *self.later_graphs][-1](
            star.tokens, star.mask, star.targets, True, star.edges, star.present
        )
        return list(weights.split([features.tokens.shape[1] for features in inputs], dim=-1))

    def _star(self, inputs: Sequence[EncoderFeatures]) -> "_Star":
        projected = []
        for features, project in zip(inputs, self.project, strict=True):
            # Encoders differ in the scale of their tokens by orders of magnitude; unit root-mean-square makes them
            # comparable, as the authors' token standardisation does.
            projected.append(project(F.rms_norm(features.tokens, features.tokens.shape[-1:], eps=1e-6)))
        mask = torch.cat([features.mask for features in inputs], dim=1)
        counts = [tokens.shape[1] for tokens in projected]
        return _Star(
            torch.cat(projected, dim=1),
            mask,
            [sum(counts[:encoder]) for encoder in range(len(counts))],
            None if self.edges is None else self.edges(mask, counts),
            None if all(features.present is None for features in inputs) else presence(inputs),
        )

    def _before_last(self, star: "_Star") -> "_Star":
        """The graph as the last layer sees it."""
        for position in range(len(self.later_graphs)):
            summaries = self._summaries(star, position).to(star.tokens.dtype)
            places = torch.tensor(star.targets, device=summaries.device)
            star = replace(star, tokens=star.tokens.index_copy(1, places, summaries))
        return star

    def _summaries(self, star: "_Star", position: int) -> Float[Tensor, "batch encoders dim"]:
        """The summary tokens after the layer at that position."""
        graph, merge = [self.graph, *self.later_graphs][position], [self.merge, *self.later_merges][position]
        update = merge(
            self.activation(graph(star.tokens, star.mask, star.targets, edges=star.edges, present=star.present))
        )
        return self.norms[position](star.tokens[:, star.targets] + update) if self.norms else update


@dataclass(frozen=True)
class _Star:
    """A batch of star graphs, in the terms of `StarLayer.forward`."""

    tokens: Float[Tensor, "batch tokens dim"]
    mask: Bool[Tensor, "batch tokens"]
    targets: list[int]
    edges: Float[Tensor, "batch encoders tokens"] | None
    present: Bool[Tensor, "batch encoders"] | None


def _star_layer(kind: str, dim: int, heads: int, dropout: float, edge_attributes: bool) -> StarLayer:
    if kind == "gatv2":
        return StarGATv2(dim, heads, dim, dropout=dropout, edge_attributes=edge_attributes)
    if kind == "transformer":
        return StarTransformer(dim, heads, dim, dropout=dropout, edge_attributes=edge_attributes)
    return StarGCN(dim, heads * dim)


def _edges(kind: str, encoders: int) -> nn.Module | None:
    if kind == "none":
        return None
    return LearnedEdges(encoders) if kind == "learned" else OriginalEdges()
