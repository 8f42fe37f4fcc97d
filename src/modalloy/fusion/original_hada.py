"""HADA's encoder of one modality as its authors coded it, so that what they trained gives what they published.

It differs from the paper (and from `HadaTower`): tokens and embeddings are standardised by fixed numbers, edges carry
fixed numbers, nothing follows the graph's aggregation, and the authors' first stage normalises by batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from modalloy.errors import ConfigError, DataError
from modalloy.fusion.edges import CROSS_EDGE, OWN_EDGE, SUMMARY_EDGE, OriginalEdges
from modalloy.fusion.inputs import EncoderFeatures, presence
from modalloy.fusion.losses import MatchingHead
from modalloy.fusion.star_graph import StarGATv2

_FIRST_STAGE_OUTPUT_DROPOUT = 0.25


@dataclass(frozen=True)
class OriginalHadaConfig:
    """What the HADA authors' code fixes, with its published values.

    >>> OriginalHadaConfig().cross_edge
    0.7
    """

    norm: Literal["none", "batch"] = "none"
    """"batch": a BatchNorm after every linear layer and after the graph, dropout last, as in the authors' first stage;
    "none": dropout before the linear layers, as in their second."""
    mean: float = -0.0006847491604276001
    """Taken off every number of the unit-norm tokens and embeddings; the default is of ALBEF's and LightningDOT's on
    Flickr30k."""
    std: float = 0.036077868193387985
    """Divides what the mean was taken off."""
    own_edge: float = OWN_EDGE
    """Carried by edges from an encoder's tokens to its own summary token."""
    cross_edge: float = CROSS_EDGE
    """Carried by edges from an encoder's tokens to the other's summary token."""
    summary_edge: float = SUMMARY_EDGE
    """Carried by edges between summary tokens; a summary token's edge to itself carries the mean of its others."""
    second_tokens: Literal["own", "first"] = "own"
    """"first": the second encoder's tokens are replaced by the first's, as in the authors' code for BLIP and CLIP; an
    embedding then depends on its batch."""

    def __post_init__(self) -> None:
        if self.norm not in ("none", "batch"):
            raise ConfigError(f"norm must be 'none' or 'batch', got {self.norm!r}.")
        if self.second_tokens not in ("own", "first"):
            raise ConfigError(f"second_tokens must be 'own' or 'first', got {self.second_tokens!r}.")
        if not self.std > 0:
            raise ConfigError(f"std must be above 0, got {self.std}.")


class OriginalHadaTower(nn.Module):
    """Fuses the tokens and embeddings of two encoders as the HADA authors' code does (its published settings, C5).

    Tokens and embeddings are L2-normalised and standardised; tokens are mapped to a common width; one GATv2 layer with
    a number on each edge (see `OriginalHadaConfig`) updates the summary tokens g; a linear layer merges their heads;
    and a last one reads [g_1, h_1, h_2, g_2], h being the embeddings.

    Only what reaches the result is computed. So in training with `norm="batch"`, the statistics after the graph are
    those of the summary tokens, while the authors' also count every other token's discarded update.

    Args:
        dims: the encoders' embedding widths.
        widths: the encoders' token widths in this modality.
        token_dim: the common token width.
        heads: attention heads, each `token_dim` wide.
        output_dim: width of the fused vector.
        dropout: probability on the attention and in the linear layers, but where the authors fixed it: none on tokens
            in their second stage, 0.25 on the output in their first.
        config: see `OriginalHadaConfig`.

    Raises:
        ConfigError: other than two encoders.
    """

    def __init__(
        self,
        dims: Sequence[int],
        widths: Sequence[int],
        token_dim: int,
        heads: int,
        output_dim: int,
        dropout: float,
        config: OriginalHadaConfig,
    ) -> None:
        super().__init__()
        if len(dims) != 2:
            raise ConfigError(f"method 'hada-original' fuses two encoders, got {len(dims)}; method 'hada' takes more.")
        first_stage = config.norm == "batch"
        if config.second_tokens == "first":
            widths = [widths[0], widths[0]]
        self.config = config
        self.project = nn.ModuleList(
            DropoutLinear(width, token_dim, dropout if first_stage else 0.0, first_stage) for width in widths
        )
        self.edges = OriginalEdges(config.own_edge, config.cross_edge, config.summary_edge)
        self.graph = StarGATv2(token_dim, heads, token_dim, dropout=dropout, edge_attributes=True)
        self.merge = DropoutLinear(heads * token_dim, token_dim, dropout, first_stage)
        self.graph_norm = nn.BatchNorm1d(token_dim) if first_stage else nn.Identity()
        self.output = DropoutLinear(
            sum(dims) + 2 * token_dim,
            output_dim,
            _FIRST_STAGE_OUTPUT_DROPOUT if first_stage else dropout,
            first_stage,
        )

    def forward(self, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch output"]:
        """Fuses a batch.

        Raises:
            DataError: an item lacks an encoder; or, with `second_tokens="first"`, a batch whose first encoder has fewer
                tokens than its second.
        """
        if not presence(inputs).all():
            raise DataError(
                "method 'hada-original' needs both encoders of every item, got items that lack one; "
                "leave them out, or fuse by method 'hada'."
            )
        tokens = torch.cat([self._nodes(inputs, position) for position in range(2)], dim=1)
        mask = torch.cat([features.mask for features in inputs], dim=1)
        counts = [features.tokens.shape[1] for features in inputs]
        updated = self.graph(tokens, mask, [0, counts[0]], edges=self.edges(mask, counts))
        first, second = self.graph_norm(self.merge(updated.flatten(0, 1))).unflatten(0, (-1, 2)).unbind(1)
        embeddings = [self._standardised(features.embedding) for features in inputs]
        return F.normalize(self.output(torch.cat([first, *embeddings, second], dim=-1)), dim=-1)

    def _nodes(self, inputs: Sequence[EncoderFeatures], position: int) -> Float[Tensor, "batch tokens dim"]:
        mask = inputs[position].mask
        source = inputs[0 if self.config.second_tokens == "first" else position]
        rows = source.tokens[source.mask]
        if source is not inputs[position]:
            # The authors' code cuts the batch's packed tokens of the first encoder by the second's token counts.
            count = int(mask.sum())
            if count > len(rows):
                raise DataError(
                    f"the authors' code can't fuse this batch: its second encoder has {count} tokens, and the first, "
                    f"whose tokens it takes instead, only {len(rows)}; import the checkpoint with lavis='repaired'."
                )
            rows = rows[:count]
        # Packed, so that a batch's statistics count no padding.
        projected = self.project[position](self._standardised(rows))
        return projected.new_zeros(*mask.shape, projected.shape[-1]).index_put((mask,), projected)

    def _standardised(self, vectors: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        return (F.normalize(vectors, dim=-1) - self.config.mean) / self.config.std


class DropoutLinear(nn.Module):
    """A linear layer with dropout before it; or with a BatchNorm, and dropout after that (the authors' two stages)."""

    def __init__(self, width: int, output: int, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, output)
        nn.init.kaiming_normal_(self.linear.weight)
        self.norm = nn.BatchNorm1d(output) if batch_norm else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows output"]:
        """Maps rows, over which a BatchNorm takes its statistics."""
        if self.norm is None:
            return self.linear(self.dropout(rows))
        return self.dropout(self.norm(self.linear(rows)))


class FirstStageMatchingHead(MatchingHead):
    """The matching head of the authors' first stage: BatchNorm and dropout follow the linear layer.

    Args:
        dim: width of the fused vectors.
        dropout: probability on the logits.
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__(dim, dropout)
        self.norm = nn.BatchNorm1d(1)

    def _logits(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch 1"]:
        return self.dropout(self.norm(self.linear(features)))
