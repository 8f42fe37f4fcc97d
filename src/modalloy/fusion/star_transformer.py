"""The graph transformer on the star graph, computed densely and for the CLS targets alone."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from modalloy.fusion.star_layer import StarLayer, attention_over, check_sizes, weighted_values, wide


class StarTransformer(StarLayer):
    """One layer of the graph transformer of Shi et al. (arXiv 2009.03509) on the star graph.

    score(x -> k) = (Wq k) . (Wk x) / sqrt(head_dim), softmax over k's incoming edges in each head,
    k' = Ws k + sum_x alpha Wv x. The heads are concatenated. With `edge_attributes` each edge carries a number e, and
    We e is added to Wk x and to Wv x.

    Keys and values are never computed token by token: (Wq k) . (Wk x) = (Wk^T Wq k) . x, and the messages are
    aggregated before the value projection; both are exact. Parameters have the names and shapes of PyG's
    `TransformerConv` (Wq is `lin_query`, Wk `lin_key`, Wv `lin_value`, Ws `lin_skip`, We `lin_edge`), so that
    `load_state_dict` takes its state directly, and the reverse. Under `torch.autocast` the products run in its dtype,
    and the softmax in float32.

    Args:
        dim: width of a token.
        heads: number of attention heads.
        head_dim: width of each head; `dim` if None.
        dropout: probability that an attention weight is dropped in training.
        edge_attributes: whether edges carry a number.

    Raises:
        ConfigError: a size isn't positive, or the dropout isn't in [0, 1).

    >>> layer = StarTransformer(dim=8, heads=2)
    >>> tokens = torch.randn(3, 5 + 4, 8)  # two encoders, of 5 and 4 tokens
    >>> mask = torch.ones(3, 9, dtype=torch.bool)
    >>> layer(tokens, mask, targets=[0, 5]).shape
    torch.Size([3, 2, 16])
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        head_dim: int | None = None,
        dropout: float = 0.0,
        edge_attributes: bool = False,
    ) -> None:
        super().__init__()
        head_dim = dim if head_dim is None else head_dim
        check_sizes(self, dropout, dim=dim, heads=heads, head_dim=head_dim)
        self.heads = heads
        self.head_dim = head_dim
        self.dropout = dropout
        self.lin_key = nn.Linear(dim, heads * head_dim)
        self.lin_query = nn.Linear(dim, heads * head_dim)
        self.lin_value = nn.Linear(dim, heads * head_dim)
        self.lin_skip = nn.Linear(dim, heads * head_dim)
        self.lin_edge = nn.Linear(1, heads * head_dim, bias=False) if edge_attributes else None

    def _update(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "batch tokens"],
        targets: Sequence[int],
        edges: Float[Tensor, "batch encoders tokens"] | None,
    ) -> tuple[Float[Tensor, "batch encoders width"], Float[Tensor, "batch encoders heads tokens"]]:
        received = tokens[:, list(targets)]
        attention = attention_over(self._logits(tokens, received, edges), mask)
        weights = F.dropout(attention, self.dropout, self.training)
        values = weighted_values(weights, tokens, self._by_head(self.lin_value.weight).to(tokens.dtype))
        # Dropped weights no longer sum to one, and what is added inside a message is scaled with them.
        values = values + weights.sum(-1, keepdim=True) * self._by_head(self.lin_value.bias)
        if edges is not None and self.lin_edge is not None:
            carried = (weights * edges[:, :, None]).sum(-1, keepdim=True)
            values = values + carried * self._by_head(self.lin_edge.weight.squeeze(1))
        return values.flatten(2).to(tokens.dtype) + _linear(self.lin_skip, received), attention

    def _logits(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        received: Float[Tensor, "batch encoders dim"],
        edges: Float[Tensor, "batch encoders tokens"] | None,
    ) -> Float[Tensor, "batch encoders heads tokens"]:
        query = _linear(self.lin_query, received).unflatten(-1, (self.heads, self.head_dim))
        scorer = torch.einsum("beho,hoi->behi", query, self._by_head(self.lin_key.weight).to(tokens.dtype))
        logits = (scorer.flatten(1, 2) @ tokens.mT).unflatten(1, scorer.shape[1:3]).to(wide(tokens.dtype))
        logits = logits + (query * self._by_head(self.lin_key.bias)).sum(-1, keepdim=True)
        if edges is not None and self.lin_edge is not None:
            slope = (query * self._by_head(self.lin_edge.weight.squeeze(1))).sum(-1, keepdim=True)
            logits = logits + slope * edges[:, :, None]
        return logits / math.sqrt(self.head_dim)

    def _by_head(self, parameter: Float[Tensor, "width *dims"]) -> Float[Tensor, "heads head_dim *dims"]:
        return parameter.unflatten(0, (self.heads, self.head_dim))


def _linear(layer: nn.Linear, vectors: Float[Tensor, "batch encoders dim"]) -> Float[Tensor, "batch encoders width"]:
    """The layer in the vectors' dtype."""
    return F.linear(vectors, layer.weight.to(vectors.dtype), layer.bias.to(vectors.dtype))
