"""Scores of many pairs, block by block, with a backward that holds one block, too.

The backward makes the affinities again instead of keeping them, and of pairs without a gradient it makes none: a loss
on hardest negatives reaches at most three pairs for each of a batch.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from modalloy.align.cross_attention import CrossAttention, Operands, block_scores, pair_scores
from modalloy.align.pair_groups import groups, shared_context_scores, shared_is_context, shared_query_scores

# Affinities held at once, and components of gathered tokens: on a CPU they then stay within the processor's cache.
_CACHED_AFFINITIES, _CACHED_COMPONENTS = 2**19, 2**22
_ELEMENTS_ELSEWHERE = 2**26
# What a pair on its own costs, compared with one among all pairs of a block.
_COST_OF_A_PAIR = 4
_DIFFERENTIATED = 4  # of the operands, the first


def score_all(
    operands: Operands, attention: CrossAttention, block: int | None = None
) -> Float[Tensor, "contexts queries"]:
    """Scores of every context with every query.

    Args:
        operands: the best in order of the items' lengths, as each block is as long as its longest item.
        attention: how they attend.
        block: how many pairs are scored at once; by default as many as fit the processor's cache.
    """
    of_a_pair = operands.context.shape[1] * operands.query.shape[1]
    return _AllPairs.apply(attention, block or _block_size(operands, of_a_pair, _CACHED_AFFINITIES), *operands)


def score_pairs(
    operands: Operands, pairs: Int[Tensor, "pairs 2"], attention: CrossAttention, block: int | None = None
) -> Float[Tensor, "pairs"]:
    """Scores of given pairs of a context and a query, by their places in `operands`."""
    return _GivenPairs.apply(attention, block or _block_of_pairs(operands), pairs, *operands)


class _AllPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attention: CrossAttention, block: int, *tensors: Tensor) -> Float[Tensor, "contexts queries"]:
        operands = Operands(*tensors)
        scores = operands.norm.new_empty(len(operands.context), len(operands.query))
        for place in _blocks(operands, block):
            scores[place[0], place[2]] = block_scores(operands.block(*place), attention)
        ctx.save_for_backward(*operands)
        ctx.attention, ctx.block = attention, block
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "contexts queries"]) -> tuple[Tensor | None, ...]:
        operands = Operands(*ctx.saved_tensors)
        pairs = grad.nonzero()
        if len(pairs) * _COST_OF_A_PAIR < grad.numel():
            block = min(ctx.block, _block_of_pairs(operands))
            return None, None, *_backward_of_pairs(operands, pairs, grad[grad != 0], ctx.attention, block)
        totals = _zeros(operands)
        for place in _blocks(operands, ctx.block):
            upstream = grad[place[0], place[2]]
            gradients = _gradients(block_scores, operands.block(*place), ctx.attention, upstream)
            for total, gradient in zip(totals.block(*place), gradients, strict=False):
                total += gradient
        return None, None, *_in_dtype_of(operands, totals)


class _GivenPairs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, attention: CrossAttention, block: int, pairs: Int[Tensor, "pairs 2"], *tensors: Tensor
    ) -> Float[Tensor, "pairs"]:
        operands = Operands(*tensors)
        ctx.save_for_backward(pairs, *operands)
        ctx.attention, ctx.block = attention, block
        return _given_pairs(operands, pairs, attention, block)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "pairs"]) -> tuple[Tensor | None, ...]:
        pairs, *tensors = ctx.saved_tensors
        return None, None, None, *_backward_of_pairs(Operands(*tensors), pairs, grad, ctx.attention, ctx.block)


def _given_pairs(
    operands: Operands, pairs: Int[Tensor, "pairs 2"], attention: CrossAttention, block: int
) -> Float[Tensor, "pairs"]:
    by_context = shared_is_context(pairs, operands.context.shape[1], operands.query.shape[1])
    score = shared_context_scores if by_context else shared_query_scores
    shared, other = pairs.unbind(1) if by_context else pairs.flip(1).unbind(1)
    length = extents((operands.share if by_context else operands.present) > 0)[other]
    scores = operands.norm.new_empty(len(pairs))
    for some in groups(shared, length, block):
        scores[some] = score(operands, pairs[some], int(length[some].max()), attention)
    return scores


def _backward_of_pairs(
    operands: Operands,
    pairs: Int[Tensor, "pairs 2"],
    grad: Float[Tensor, "pairs"],
    attention: CrossAttention,
    block: int,
) -> tuple[Tensor | None, ...]:
    totals = _zeros(operands)
    for some, upstream in zip(pairs.split(block), grad.split(block), strict=True):
        gradients = _gradients(pair_scores, operands.pairs(some), attention, upstream)
        context, query = some.unbind(1)
        for total, item, gradient in zip(totals, (context, context, query, query), gradients, strict=False):
            total.index_add_(0, item, gradient.to(total.dtype))
    return _in_dtype_of(operands, totals)


def _gradients(
    score: Callable[[Operands, CrossAttention], Tensor], part: Operands, attention: CrossAttention, upstream: Tensor
) -> tuple[Tensor, ...]:
    leaves = [tensor.detach().requires_grad_() for tensor in part[:_DIFFERENTIATED]]
    with torch.enable_grad(), torch.autocast(upstream.device.type, enabled=False):
        return torch.autograd.grad(score(Operands(*leaves, *part[_DIFFERENTIATED:]), attention), leaves, upstream)


def _blocks(operands: Operands, block: int) -> Iterator[tuple[slice, slice, slice, slice]]:
    """Nearly square blocks of pairs: which contexts, how much of them, which queries, how much of them."""
    positions, words = extents(operands.present > 0).tolist(), extents(operands.share > 0).tolist()
    height = max(1, min(len(positions), math.isqrt(block)))
    width = max(1, block // height)
    for top in range(0, len(positions), height):
        tall = max(positions[top : top + height])
        for left in range(0, len(words), width):
            wide = max(words[left : left + width])
            yield slice(top, top + height), slice(tall), slice(left, left + width), slice(wide)


def extents(mask: Tensor) -> Int[Tensor, "items"]:
    """How far the tokens of each item reach, gaps among them included."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return F.pad(torch.where(mask, places, 0), (1, 0)).amax(1)


def _block_size(operands: Operands, elements_of_a_pair: int, cached: int) -> int:
    """How many pairs the cache, or an accelerator's memory, has room for."""
    elements = cached if operands.context.device.type == "cpu" else _ELEMENTS_ELSEWHERE
    return max(1, elements // max(1, elements_of_a_pair))


def _block_of_pairs(operands: Operands) -> int:
    _, positions, dim = operands.context.shape
    return _block_size(operands, (positions + operands.query.shape[1]) * dim, _CACHED_COMPONENTS)


def _zeros(operands: Operands) -> Operands:
    return Operands(*(torch.zeros_like(tensor, dtype=operands.norm.dtype) for tensor in operands))


def _in_dtype_of(operands: Operands, totals: Operands) -> tuple[Tensor | None, ...]:
    found = [total.to(tensor.dtype) for total, tensor in zip(totals, operands, strict=True)]
    return *found[:_DIFFERENTIATED], *[None] * (len(operands) - _DIFFERENTIATED)
