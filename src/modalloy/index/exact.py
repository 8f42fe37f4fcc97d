"""Exact search of vectors: scanned in float32, decided in float64, so that it is the truth that others are held to."""

from collections.abc import Iterable, Sequence
from itertools import compress

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from modalloy.index.base import Found

_UNIT = 2.0**-24


def best_rows(
    query: Float[Tensor, "dim"],
    vectors: Float[Tensor, "items dim"],
    k: int,
    allowed: Bool[Tensor, "items"] | None = None,
    longest: float | None = None,
) -> tuple[Int[Tensor, "found"], Float[Tensor, "found"]]:
    """The rows with the largest inner products, best first, and these; of equal ones the lower row comes first.

    Products are summed in float32 first. What rounding leaves undecided is summed in float64 and rounded to float32, so
    that copies of an item tie, and a score doesn't depend on what is scored with it.

    >>> vectors = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    >>> best_rows(torch.tensor([1.0, 0.5]), vectors, 2)
    (tensor([1, 2]), tensor([1., 1.]))

    Args:
        query: finite, in float32.
        vectors: finite, in float32.
        k: how many to find, at least 1; where there are fewer, all are found.
        allowed: False for rows that aren't to be found.
        longest: length of the longest vector, where it is known already; to find it takes as long as the scan.
    """
    rough = vectors @ query
    if allowed is not None:
        rough = rough.masked_fill(~allowed, -torch.inf)
    found = min(k, len(vectors) if allowed is None else int(allowed.sum()))
    if found == 0:
        return torch.empty(0, dtype=torch.long), torch.empty(0)
    # A float32 sum of n products is off by no more than n units of the sum of their sizes.
    longest = float(vectors.norm(dim=1).max()) if longest is None else longest
    slack = 2 * vectors.shape[1] * _UNIT * longest * float(query.norm())
    near = (rough >= rough.topk(found).values[-1] - slack).nonzero().squeeze(1)
    scores = (vectors[near].double() @ query.double()).float()
    order = scores.argsort(descending=True, stable=True)[:found]
    return near[order], scores[order]


def best_of_blocks(
    queries: Float[Tensor, "queries dim"],
    blocks: Iterable[tuple[Sequence[str], Float[Tensor, "items dim"]]],
    k: int,
) -> list[Found]:
    """The best items of all blocks for each query, best first; of equal scores the earlier one comes first.

    An item whose vector isn't finite, in a damaged index, is never found.

    Args:
        queries: finite.
        blocks: ids and their vectors, some at a time, so that they needn't all be in memory.
        k: how many to find.

    >>> best_of_blocks(torch.eye(2), [(["a"], torch.eye(2)[:1]), (["b"], torch.eye(2)[:1])], 2)
    [Found(ids=['a', 'b'], scores=[1.0, 1.0]), Found(ids=['a', 'b'], scores=[0.0, 0.0])]
    """
    best: list[list[tuple[float, str]]] = [[] for _ in queries]
    for block_ids, block in blocks:
        finite = block.isfinite().all(dim=1)
        ids, vectors = list(compress(block_ids, finite.tolist())), block[finite]
        for each, query in zip(best, queries, strict=True):
            rows, scores = best_rows(query, vectors, k)
            each.extend((score, ids[row]) for row, score in zip(rows.tolist(), scores.tolist(), strict=True))
            each.sort(key=lambda scored: scored[0], reverse=True)
            del each[k:]
    return [Found([id for _, id in each], [score for score, _ in each]) for each in best]
