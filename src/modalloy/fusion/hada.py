"""HADA's encoder of one modality: a star graph over the tokens of all input encoders (arXiv 2301.04742, 3.2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from modalloy.fusion.inputs import EncoderFeatures
from modalloy.fusion.output import FusedOutput
from modalloy.fusion.star_graph import StarGATv2


class HadaTower(nn.Module):
    """Fuses the tokens and embeddings of N encoders into one unit-norm vector per item (HADA, section 3.2).

    Each encoder's tokens are mapped to a common width; in a star graph every token sends to the summary (CLS) token
    of every encoder; one GATv2 layer updates those N tokens, a linear layer merges their heads, and a last linear
    layer reads them beside the encoders' own embeddings.

    Args:
        dims: the encoders' embedding widths.
        widths: the encoders' token widths in this modality.
        token_dim: the common token width d_p.
        heads: attention heads, each `token_dim` wide.
        output_dim: width of the fused vector.
        dropout: probability in the linear layers and on the attention.
        start: see `FusedOutput`.
        activation: "elu" or "none", on what the graph gives (the paper's sigma).
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
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(width, token_dim) for width in widths)
        self.graph = StarGATv2(token_dim, heads=heads, head_dim=token_dim, dropout=dropout)
        self.activation = nn.ELU() if activation == "elu" else nn.Identity()
        self.merge = nn.Sequential(nn.Dropout(dropout), nn.Linear(heads * token_dim, token_dim))
        self.output = FusedOutput(dims, len(dims) * token_dim, output_dim, dropout, start)

    def forward(self, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch output"]:
        """Fuses a batch."""
        tokens, mask, summaries = self._nodes(inputs)
        updated = self.merge(self.activation(self.graph(tokens, mask, summaries)))
        return self.output([features.embedding for features in inputs], updated.flatten(1))

    @torch.no_grad()
    def attention(self, inputs: Sequence[EncoderFeatures]) -> list[Float[Tensor, "batch encoders heads _"]]:
        """How much each encoder's summary token attends to each token, a tensor per source encoder."""
        tokens, mask, summaries = self._nodes(inputs)
        _, weights = self.graph(tokens, mask, summaries, return_attention=True)
        return list(weights.split([features.tokens.shape[1] for features in inputs], dim=-1))

    def _nodes(self, inputs: Sequence[EncoderFeatures]) -> tuple[Tensor, Tensor, list[int]]:
        projected, summaries, position = [], [], 0
        for features, project in zip(inputs, self.project, strict=True):
            # Encoders differ in the scale of their tokens by orders of magnitude; unit root-mean-square makes them
            # comparable, as the authors' token standardisation does.
            tokens = F.rms_norm(features.tokens, features.tokens.shape[-1:], eps=1e-6)
            projected.append(project(tokens))
            summaries.append(position)
            position += tokens.shape[1]
        mask = torch.cat([features.mask for features in inputs], dim=1)
        return torch.cat(projected, dim=1), mask, summaries
