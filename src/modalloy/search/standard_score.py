"""How a question's scores spread over an index, by which scores of different questions can be compared.

Cosines between pictures spread otherwise than those between texts and pictures, and a vague text's otherwise than a
precise one's. The spread is that over a sample of the index's vectors, the same ones for all questions.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from modalloy.encoders import Modality
from modalloy.index import Condition, Snapshot
from modalloy.index.columns import vectors_in
from modalloy.index.schema import VECTOR

SAMPLE = 2048
"""Vectors of a sample at most; the deviation is then known to about 2%."""
_BLOCK = 64


class Spread(NamedTuple):
    """Of a question's scores."""

    mean: float
    """Their mean."""
    deviation: float
    """Their standard deviation; 1 where they don't differ."""

    def standard(self, score: float) -> float:
        """A score in units of the deviation, from the mean.

        >>> Spread(0.25, 0.125).standard(0.5)
        2.0
        """
        return (score - self.mean) / self.deviation


def sample_vectors(
    snapshot: Snapshot, modality: Modality, size: int = SAMPLE, seed: int = 0
) -> Float[Tensor, "sample dim"]:
    """Vectors of some pictures or captions: all where there are no more than `size`, else drawn in short runs of rows.

    Args:
        snapshot: the state of the index.
        modality: whose vectors.
        size: how many at most.
        seed: of the drawing.
    """
    column, where = VECTOR[modality], (Condition("modality", "=", modality),)
    count = snapshot.count(where)
    if count <= size:
        runs = [(0, count)] if count else []
    else:
        drawn = torch.randperm(count // _BLOCK, generator=torch.Generator().manual_seed(seed))
        chosen = drawn[: size // _BLOCK].sort().values.tolist()
        runs = [(start * _BLOCK, _BLOCK) for start in chosen]
    found = [
        vectors_in(batch, column)
        for offset, limit in runs
        for batch in snapshot.scan([column], where, limit=limit, offset=offset)
    ]
    return torch.cat(found) if found else torch.empty(0, snapshot.head.dim)


def spread_of(sample: Float[Tensor, "sample dim"], question: Float[Tensor, "dim"]) -> Spread:
    """The spread of a question's scores with a sample of vectors.

    >>> spread_of(torch.tensor([[0.0], [1.0]]), torch.tensor([2.0]))
    Spread(mean=1.0, deviation=1.0)
    """
    if not len(sample):
        return Spread(0.0, 1.0)
    scores = (sample @ question).double()
    deviation = float(scores.std(unbiased=False))
    # Equal scores may differ in their last bits.
    return Spread(float(scores.mean()), deviation if deviation > 1e-6 else 1.0)
