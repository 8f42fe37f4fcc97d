"""Ranking by one part of an alloy's vectors alone, as if that input had been asked."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from modalloy.encoders import Modality
from modalloy.errors import ConfigError
from modalloy.index import Condition, Found, Snapshot
from modalloy.search.explanation import VectorParts, restricted

MOST = 200_000
"""Items that are looked at one by one."""


def require_part(parts: VectorParts | None, name: str) -> Sequence[slice]:
    """Where a part stands in the vectors.

    Raises:
        ConfigError: the vectors have no such part.
    """
    if parts is None:
        raise ConfigError(
            f"can't rank by {name!r}: this encoder's vectors can't be taken apart into those of inputs; leave by out."
        )
    if name not in parts:
        raise ConfigError(
            f"can't rank by {name!r}: the vectors hold {', '.join(map(repr, parts))} alone; choose one of them."
        )
    return parts[name]


def rank_by_part(
    snapshot: Snapshot,
    modality: Modality,
    where: Sequence[slice],
    question: Float[Tensor, "short"],
    k: int,
    conditions: Sequence[Condition] = (),
) -> Found:
    """The items with the largest inner products of one part of their vectors, best first, by looking at all of them.

    Args:
        snapshot: the state of the index.
        modality: what to find.
        where: the part's place in the vectors.
        question: that part of the question.
        k: how many.
        conditions: all must hold.

    Raises:
        ConfigError: more than `MOST` items satisfy the conditions.
    """
    count = snapshot.count([Condition("modality", "=", modality), *conditions])
    if count > MOST:
        raise ConfigError(
            f"ranking by one input looks at each of {count:,} items, at most {MOST:,} are possible; narrow it down by "
            "a condition, or leave by out."
        )
    # Nothing else of the vectors counts where the question is zero.
    whole = torch.zeros(snapshot.head.dim)
    whole[restricted(torch.arange(snapshot.head.dim), where)] = question
    return snapshot.search(modality, whole[None], k, conditions, exact=True)[0]
