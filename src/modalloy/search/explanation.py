"""Which of an alloy's encoders contributed how much to a score, and which part of the question.

An alloy's vector is folded from parts (`modalloy.fusion.similarity.fold`), so that a score is the sum of the parts'
inner products. A rotated vector, or that of a single encoder, can't be taken apart.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Real
from torch import Tensor

from modalloy.encoders import Encoder
from modalloy.fusion import Alloy

VectorParts = Mapping[str, Sequence[slice]]
"""By name, where in a vector a part stands; together the parts cover it."""


def vector_parts(encoder: Encoder) -> VectorParts | None:
    """What an encoder's vectors are folded from: "fused", and the inputs whose own similarity has a weight, by name.

    None where there is nothing to take apart.
    """
    parts = encoder.fuser.parts() if isinstance(encoder, Alloy) else None
    if parts is None or not isinstance(encoder, Alloy):
        return None
    names = dict(zip((f"input {at}" for at in range(len(encoder.encoders))), input_names(encoder), strict=True))
    return {names.get(name, name): where for name, where in parts.items()}


def input_names(encoder: Encoder) -> list[str]:
    """The names of an alloy's inputs, each once; none of another encoder.

    Of inputs with one name the later ones get their place beside it.
    """
    names = list[str]()
    for position, each in enumerate(encoder.encoders if isinstance(encoder, Alloy) else (), start=1):
        names.append(f"{each.name} ({position})" if each.name in names else each.name)
    return names


def restricted(vectors: Real[Tensor, "*batch dim"], where: Sequence[slice]) -> Real[Tensor, "*batch short"]:
    """Some slices of each vector, one after the other.

    >>> restricted(torch.arange(5.0), [slice(0, 1), slice(3, 5)])
    tensor([0., 3., 4.])
    """
    return torch.cat([vectors[..., each] for each in where], dim=-1)


def contributions(
    question: Float[Tensor, "dim"], vectors: Float[Tensor, "hits dim"], parts: VectorParts
) -> list[dict[str, float]]:
    """What each part of the vectors adds to each hit's score; these add up to it.

    >>> contributions(torch.ones(3), torch.tensor([[0.5, 0.25, 0.0]]), {"a": [slice(0, 1)], "b": [slice(1, 3)]})
    [{'a': 0.5, 'b': 0.25}]
    """
    question, vectors = question.double(), vectors.double()
    columns = {
        name: (restricted(vectors, where) @ restricted(question, where)).tolist() for name, where in parts.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
