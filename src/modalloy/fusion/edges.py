"""The numbers that the star graph's edges carry: learned, or the HADA authors' constants."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# The published values of the HADA authors' code.
OWN_EDGE, CROSS_EDGE, SUMMARY_EDGE = 0.9, 0.7, 1.1


class LearnedEdges(nn.Module):
    """A learned number for each kind of edge: one for each pair of source and target encoder, and another for it
    where the source is a summary token.

    They start at 0, where the graph is what it is without edge features.

    Args:
        encoders: how many encoders the graph joins.

    >>> LearnedEdges(2)(torch.ones(3, 9, dtype=torch.bool), counts=[5, 4]).shape
    torch.Size([3, 2, 9])
    """

    def __init__(self, encoders: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(encoders, 2 * encoders))

    def forward(
        self, mask: Bool[Tensor, "batch tokens"], counts: Sequence[int]
    ) -> Float[Tensor, "batch encoders tokens"]:
        """The number on the edge from each token to each summary token.

        Args:
            mask: True where a token is real.
            counts: along `mask`, how many tokens are each encoder's, padding included; the first is its summary.
        """
        return self.table[:, _kinds(counts, mask.device)].expand(len(mask), -1, -1)


class OriginalEdges(nn.Module):
    """The constants of the HADA authors' code, for any number of encoders.

    Args:
        own: from an encoder's tokens to its own summary token.
        cross: from an encoder's tokens to another's summary token.
        summary: between summary tokens. One's edge to itself carries the mean of its others, as PyG replaces listed
            self-loops.

    >>> OriginalEdges()(torch.ones(1, 5, dtype=torch.bool), counts=[3, 2])[0, 0, 1:]
    tensor([0.9000, 0.9000, 1.1000, 0.7000])
    """

    def __init__(self, own: float = OWN_EDGE, cross: float = CROSS_EDGE, summary: float = SUMMARY_EDGE) -> None:
        super().__init__()
        self.own, self.cross, self.summary = own, cross, summary

    def forward(
        self, mask: Bool[Tensor, "batch tokens"], counts: Sequence[int]
    ) -> Float[Tensor, "batch encoders tokens"]:
        """As `LearnedEdges.forward`."""
        encoders = len(counts)
        table = torch.full((encoders, 2 * encoders), self.cross, device=mask.device)
        table[:, encoders:] = self.summary
        table[:, :encoders].fill_diagonal_(self.own)
        edges = table[:, _kinds(counts, mask.device)].repeat(len(mask), 1, 1)
        targets, summaries = list(range(encoders)), _starts(counts)
        others = mask[:, None].repeat(1, encoders, 1)
        others[:, targets, summaries] = False
        # A summary token that is all that an item has is sent nothing else.
        edges[:, targets, summaries] = (edges * others).sum(-1) / others.sum(-1).clamp(min=1)
        return edges


def _kinds(counts: Sequence[int], device: torch.device) -> Int[Tensor, " tokens"]:
    """The encoder of each token; for summary tokens, that and the number of encoders."""
    kinds = torch.cat([torch.full((count,), encoder, device=device) for encoder, count in enumerate(counts)])
    kinds[_starts(counts)] += len(counts)
    return kinds


def _starts(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:encoder]) for encoder in range(len(counts))]
