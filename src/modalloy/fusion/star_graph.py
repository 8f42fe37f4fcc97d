"""The star-graph GATv2 layer of HADA, computed densely and for the CLS targets alone.

Only the encoders' CLS tokens receive messages, so with N encoders a graph has N targets and the edge list is
the dense grid of tokens x targets. Three identities, all exact, make the layer nearly as cheap as its one
unavoidable product, W1 x for every token:

- sum_x alpha_x W1 x = W1 (sum_x alpha_x x): messages are aggregated before the value projection.
- W2 is only applied to the targets.
- d logit / d att needs no pass of its own: it follows from the gradient of W1 (see `_StarLogits.backward`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from modalloy.fusion.star_layer import StarLayer, attention_over, check_sizes, weighted_values, wide

# Elements of one block of W1 x on a CPU: the passes over it then stay within the processor's cache.
_BLOCK_ELEMENTS = 2**19


class StarGATv2(StarLayer):
    """One GATv2 layer on the star graph: every token of every encoder sends to every encoder's CLS token.

    HADA (arXiv 2301.04742), section 3.2, with GATv2 of Brody et al. (arXiv 2105.14491):
    score(x -> k) = a . LeakyReLU(W1 x + W2 k), softmax over k's incoming edges in each head,
    k' = sum_x alpha W1 x + bias. The heads are concatenated; the paper's sigma is left to the caller. With
    `edge_attributes` each edge carries a number e, and W1 x + W2 k + w3 e is scored.

    Parameters have the names and shapes of PyG's `GATv2Conv` (W1 is `lin_l`, W2 is `lin_r`, w3 is `lin_edge`), so that
    `load_state_dict` takes its state directly, and the reverse. Under `torch.autocast` the large products run
    in its dtype, and scores and softmax in float32. Gradients can't be differentiated again.

    Args:
        dim: width of a token.
        heads: number of attention heads.
        head_dim: width of each head; `dim` if None, as in HADA.
        negative_slope: slope of the LeakyReLU below zero.
        dropout: probability that an attention weight is dropped in training.
        bias: whether the two projections and the output have a bias.
        share_weights: whether W2 = W1.
        edge_attributes: whether edges carry a number, as in the HADA authors' code.

    Raises:
        ConfigError: a size isn't positive, or the dropout isn't in [0, 1).

    >>> layer = StarGATv2(dim=8, heads=2)
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
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        bias: bool = True,
        share_weights: bool = False,
        edge_attributes: bool = False,
    ):
        super().__init__()
        head_dim = dim if head_dim is None else head_dim
        check_sizes(self, dropout, dim=dim, heads=heads, head_dim=head_dim)
        self.heads = heads
        self.head_dim = head_dim
        self.negative_slope = negative_slope
        self.dropout = dropout
        self.lin_l = nn.Linear(dim, heads * head_dim, bias=bias)
        self.lin_r = self.lin_l if share_weights else nn.Linear(dim, heads * head_dim, bias=bias)
        self.lin_edge = nn.Linear(1, heads * head_dim, bias=False) if edge_attributes else None
        self.att = nn.Parameter(torch.empty(1, heads, head_dim))
        self.bias = nn.Parameter(torch.empty(heads * head_dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights (Glorot uniform) and set the biases to zero."""
        with torch.no_grad():
            for weight in (self.lin_l.weight, self.lin_r.weight, self.att[0]):
                nn.init.xavier_uniform_(weight)
            if self.lin_edge is not None:
                nn.init.xavier_uniform_(self.lin_edge.weight)
            for bias in (self.lin_l.bias, self.lin_r.bias, self.bias):
                if bias is not None:
                    nn.init.zeros_(bias)

    def _update(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "batch tokens"],
        targets: Sequence[int],
        edges: Float[Tensor, "batch encoders tokens"] | None,
    ) -> tuple[Float[Tensor, "batch encoders width"], Float[Tensor, "batch encoders heads tokens"]]:
        attention = self._attention(tokens, mask, targets, edges)
        return self._values(tokens, F.dropout(attention, self.dropout, self.training)), attention

    def _attention(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "batch tokens"],
        targets: Sequence[int],
        edges: Float[Tensor, "batch encoders tokens"] | None,
    ) -> Float[Tensor, "batch encoders heads tokens"]:
        dtype = tokens.dtype
        query = F.linear(tokens[:, list(targets)], self.lin_r.weight.to(dtype)).to(wide(dtype))
        for bias in (self.lin_l.bias, self.lin_r.bias):
            if bias is not None:
                query = query + bias
        logits = _StarLogits.apply(
            tokens,
            self.lin_l.weight.to(dtype).unflatten(0, (self.heads, self.head_dim)),
            query.unflatten(-1, (self.heads, self.head_dim)),
            self.att[0].to(wide(dtype)),
            None if edges is None else edges.to(wide(dtype)),
            None if self.lin_edge is None else self.lin_edge.weight.to(wide(dtype)).view(self.heads, self.head_dim),
            self.negative_slope,
            torch.is_grad_enabled(),
        )
        return attention_over(logits, mask)

    def _values(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        weights: Float[Tensor, "batch encoders heads tokens"],
    ) -> Float[Tensor, "batch encoders width"]:
        dtype = tokens.dtype
        projection = self.lin_l.weight.to(dtype).unflatten(0, (self.heads, self.head_dim))
        values = weighted_values(weights, tokens, projection)
        if self.bias is not None:
            # Dropped weights no longer sum to one, and the bias inside a message is scaled with them.
            inner = self.lin_l.bias.unflatten(0, (self.heads, self.head_dim))
            values = values + weights.sum(-1, keepdim=True) * inner
            values = values + self.bias.unflatten(0, (self.heads, self.head_dim))
        return values.flatten(2).to(dtype)


class _StarLogits(torch.autograd.Function):
    """logits[b, e, h, t] = att[h] . LeakyReLU(weight[h] tokens[b, t] + query[b, e, h] + edges[b, e, t] edge_weight[h]).

    Works through blocks of items, one head and one target at a time, so that nothing of size
    tokens x encoders x head_dim is ever held. Only W1 x is kept for the backward, which recomputes the rest.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Float[Tensor, "batch tokens dim"],
        weight: Float[Tensor, "heads head_dim dim"],
        query: Float[Tensor, "batch encoders heads head_dim"],
        att: Float[Tensor, "heads head_dim"],
        edges: Float[Tensor, "batch encoders tokens"] | None,
        edge_weight: Float[Tensor, "heads head_dim"] | None,
        slope: float,
        keep: bool,
    ) -> Float[Tensor, "batch encoders heads tokens"]:
        batch, length, _ = tokens.shape
        heads, head_dim, _ = weight.shape
        encoders = query.shape[1]
        tokens = tokens.contiguous()
        logits = query.new_empty(batch, encoders, heads, length)
        kept = tokens.new_empty(heads, batch, length, head_dim) if keep else None
        for block in _blocks(tokens, head_dim):
            source = tokens[block].flatten(0, 1)
            scratch = query.new_empty(len(tokens[block]), length, head_dim)
            for head in range(heads):
                out = None if kept is None else kept[head, block].flatten(0, 1)
                left = torch.mm(source, weight[head].T, out=out).view_as(scratch).to(query.dtype)
                for encoder in range(encoders):
                    z = torch.add(left, query[block, encoder, head, None], out=scratch)
                    if edges is not None and edge_weight is not None:
                        z.addcmul_(edges[block, encoder, :, None], edge_weight[head])
                    F.leaky_relu_(z, slope)
                    logits[block, encoder, head] = z @ att[head]
        ctx.save_for_backward(tokens, weight, query, att, edges, edge_weight, kept)
        ctx.slope = slope
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "batch encoders heads tokens"]) -> tuple[Tensor | None, ...]:
        """Gradients, all from D = grad * LeakyReLU'(z), z = W1 x + query + w3 e, summed before `att` scales it.

        With S = sum over encoders of D: d tokens = S (att * weight), d weight = att * (S^T tokens),
        d query = att * sum over tokens of D. And as LeakyReLU(z) = LeakyReLU'(z) z,
        d att = sum D * z = sum over dim of weight * (S^T tokens) + sum of query * (sum over tokens of D), and
        likewise with T = sum of e D: d w3 = att * T, and d att gains w3 * T.
        And d e = sum over heads of D . (att * w3).
        """
        tokens, weight, query, att, edges, edge_weight, kept = ctx.saved_tensors
        heads, head_dim, dim = weight.shape
        grad = grad.contiguous()
        scaled_weight = (weight * att[:, :, None]).to(weight.dtype).flatten(0, 1)
        grad_tokens = torch.empty_like(tokens) if ctx.needs_input_grad[0] else None
        products = query.new_zeros(heads * head_dim, dim)  # S^T tokens
        sums = torch.empty_like(query)  # sum over tokens of D
        edge_sums = None if edges is None else torch.zeros_like(edge_weight)  # T
        grad_edges = edges.new_zeros(edges.shape) if ctx.needs_input_grad[4] else None
        for block in _blocks(tokens, head_dim):
            source = tokens[block].flatten(0, 1)
            summed = tokens.new_empty(*tokens[block].shape[:2], heads, head_dim)  # S
            scratch = query.new_empty(*tokens[block].shape[:2], head_dim)
            for head in range(heads):
                left = kept[head, block].to(query.dtype)
                total: Tensor | None = None
                for encoder in range(query.shape[1]):
                    z = torch.add(left, query[block, encoder, head, None], out=scratch)
                    if edges is not None:
                        z.addcmul_(edges[block, encoder, :, None], edge_weight[head])
                    upstream = grad[block, encoder, head, :, None].expand_as(z)
                    slopes = torch.ops.aten.leaky_relu_backward(upstream, z, ctx.slope, False)
                    torch.sum(slopes, dim=1, out=sums[block, encoder, head])
                    if edge_sums is not None:
                        edge_sums[head] += edges[block, encoder].flatten() @ slopes.flatten(0, 1)
                    if grad_edges is not None:
                        grad_edges[block, encoder] += slopes @ (att[head] * edge_weight[head])
                    total = slopes if total is None else total.add_(slopes)
                summed[:, :, head] = total
            rows = summed.flatten(2).flatten(0, 1)
            products += torch.mm(rows.T, source)
            if grad_tokens is not None:
                torch.mm(rows, scaled_weight, out=grad_tokens[block].flatten(0, 1))
        products = products.view(heads, head_dim, dim)
        grad_att = (weight * products).sum(-1) + (query * sums).sum((0, 1))
        grad_weight, grad_query, grad_edge = (products * att[:, :, None]).to(weight.dtype), sums * att, None
        if edge_sums is not None:
            grad_att += edge_weight * edge_sums
            grad_edge = att * edge_sums
        return grad_tokens, grad_weight, grad_query, grad_att, grad_edges, grad_edge, None, None


def _blocks(tokens: Float[Tensor, "batch tokens dim"], head_dim: int) -> Iterator[slice]:
    """Slices of items whose W1 x (one head) fits the cache of a CPU; everything at once on other devices."""
    batch, length, _ = tokens.shape
    size = max(1, _BLOCK_ELEMENTS // (length * head_dim)) if tokens.device.type == "cpu" else max(1, batch)
    return (slice(start, min(start + size, batch)) for start in range(0, batch, size))
