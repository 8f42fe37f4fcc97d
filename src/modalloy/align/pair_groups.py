"""Scores of given pairs in groups that share an item, whose tokens are then gathered once for all of them."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.align.cross_attention import CrossAttention, Operands, affinity_scores

# More share an item's tokens among more pairs, but make captions of unequal lengths as long as the longest.
_LARGEST = 8


def shared_is_context(pairs: Int[Tensor, "pairs 2"], positions: int, words: int) -> bool:
    """Whether fewer tokens are gathered if pairs share a context rather than a query."""
    lengths = torch.tensor([positions, words])
    gathered = [
        int((side.bincount() / _LARGEST).ceil().sum()) * own + len(pairs) * other
        for side, own, other in zip(pairs.unbind(1), lengths.tolist(), lengths.flip(0).tolist(), strict=True)
    ]
    return gathered[0] <= gathered[1]


def groups(
    shared: Int[Tensor, "pairs"], length: Int[Tensor, "pairs"], block: int
) -> Iterator[Int[Tensor, "groups size"]]:
    """Places of all pairs, group by group; those of a group share an item, and a block's groups are of one size.

    Args:
        shared: the item that pairs of a group have in common.
        length: of the other item of each pair; about equally long ones come together.
        block: the most pairs given at once.
    """
    largest = min(_LARGEST, block)
    order = (shared * (1 + length.max()) + length).argsort() if len(shared) else shared
    counts = shared[order].unique_consecutive(return_counts=True)[1]
    place = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    starts = (place % largest == 0).nonzero().flatten()
    sizes = starts.diff(append=starts.new_tensor([len(order)]))
    for size in sizes.unique().tolist():
        table = order[starts[sizes == size][:, None] + torch.arange(size, device=order.device)]
        yield from table[length[table[:, -1]].argsort()].split(block // size)


def shared_context_scores(
    operands: Operands, pairs: Int[Tensor, "groups size 2"], words: int, attention: CrossAttention
) -> Float[Tensor, "groups size"]:
    """Scores of each group's context, the first of its pairs', with its queries, of at most so many words."""
    context, queries = pairs[:, 0, 0], pairs[..., 1]
    query = _tokens(operands.query, queries, words)
    affinity = operands.context.index_select(0, context) @ query.flatten(1, 2).mT
    return affinity_scores(
        affinity.unflatten(2, (*queries.shape[1:], words)),
        operands.gram.index_select(0, context),
        operands.norm[queries][..., :words],
        operands.present.index_select(0, context),
        operands.share[queries][..., :words],
        attention,
    )


def shared_query_scores(
    operands: Operands, pairs: Int[Tensor, "groups size 2"], positions: int, attention: CrossAttention
) -> Float[Tensor, "groups size"]:
    """Scores of each group's query, the first of its pairs', with its contexts, of at most so many positions."""
    contexts, query = pairs[..., 0], pairs[:, 0, 1]
    affinity = _tokens(operands.context, contexts, positions).flatten(1, 2) @ operands.query.index_select(0, query).mT
    of_each = pairs[..., 1].flatten()
    scores = affinity_scores(
        affinity.view(contexts.numel(), positions, 1, operands.query.shape[1]),
        operands.gram[:, :positions, :positions].index_select(0, contexts.flatten()),
        operands.norm.index_select(0, of_each)[:, None],
        operands.present[:, :positions].index_select(0, contexts.flatten()),
        operands.share.index_select(0, of_each)[:, None],
        attention,
    )
    return scores.view_as(contexts)


def _tokens(
    tokens: Float[Tensor, "items tokens dim"], items: Int[Tensor, "groups size"], length: int
) -> Float[Tensor, "groups size length dim"]:
    """The first tokens of some items."""
    rows = items[..., None] * tokens.shape[1] + torch.arange(length, device=items.device)
    return tokens.flatten(0, 1).index_select(0, rows.flatten()).view(*rows.shape, tokens.shape[2])
