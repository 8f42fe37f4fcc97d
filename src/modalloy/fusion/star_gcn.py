"""The graph convolution of Kipf and Welling on the star graph."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from modalloy.fusion.star_layer import StarLayer, check_sizes, wide


class StarGCN(StarLayer):
    """One graph convolution (arXiv 1609.02907) on the star graph, as PyG's `GCNConv` computes it on directed edges.

    k' = W sum_x x / sqrt(d_x d_k) + bias, where d is 1 for the self-loop plus the number of edges that come in from
    other nodes: of an item with n real tokens in all, d = n for the CLS tokens (whose own edge is the self-loop), and
    d = 1 for the others, which nothing is sent to. So a CLS token weighs 1 / n and any other token 1 / sqrt(n), and
    all targets get the same update. Nothing attends: as "attention" these fixed coefficients are returned.

    Parameters have the names and shapes of PyG's `GCNConv`. Edges carry no number.

    Args:
        dim: width of a token.
        width: width of the result.

    Raises:
        ConfigError: a size isn't positive.

    >>> layer = StarGCN(dim=8, width=16)
    >>> tokens = torch.randn(3, 5 + 4, 8)  # two encoders, of 5 and 4 tokens
    >>> mask = torch.ones(3, 9, dtype=torch.bool)
    >>> layer(tokens, mask, targets=[0, 5]).shape
    torch.Size([3, 2, 16])
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        check_sizes(self, 0.0, dim=dim, width=width)
        self.lin = nn.Linear(dim, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))
        self.lin_edge = None
        nn.init.xavier_uniform_(self.lin.weight)

    def _update(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "batch tokens"],
        targets: Sequence[int],
        edges: Float[Tensor, "batch encoders tokens"] | None,
    ) -> tuple[Float[Tensor, "batch encoders width"], Float[Tensor, "batch encoders heads tokens"]]:
        root = mask.sum(1, keepdim=True).to(wide(tokens.dtype)).rsqrt()
        shares = mask * root
        shares[:, list(targets)] *= root
        summed = (shares[:, None].to(tokens.dtype) @ tokens).squeeze(1)
        update = F.linear(summed, self.lin.weight.to(tokens.dtype), self.bias.to(tokens.dtype))
        coefficients = shares[:, None, None].expand(-1, len(targets), -1, -1)
        return update[:, None].expand(-1, len(targets), -1), coefficients
