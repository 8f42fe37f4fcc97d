"""Diversity of a fusion from its inputs: a penalty on what their similarities have in common."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def decorrelation_loss(
    similarity: Float[Tensor, "images texts"],
    others: Sequence[Float[Tensor, "images texts"]],
    unrelated: Bool[Tensor, "images texts"],
) -> Float[Tensor, ""]:
    """The mean over other similarities of the squared correlation with them, over unrelated pairs.

    What similarities say of unrelated pairs is their error. An ensemble whose members' errors are uncorrelated gains
    most of averaging, so a member is trained to have errors of its own (negative correlation learning: Liu and Yao,
    Neural Networks 12, 1999). A similarity that is constant is uncorrelated with any other.

    Args:
        similarity: of the model that is trained.
        others: of the models that it shall differ from, one or more.
        unrelated: the pairs that count.

    >>> similarity = torch.tensor([[9.0, 1.0], [2.0, 9.0]])
    >>> round(decorrelation_loss(similarity, [-similarity, torch.ones(2, 2)], similarity < 9).item(), 4)
    0.5
    """
    own = _standardised(similarity[unrelated])
    return torch.stack([(own @ _standardised(other[unrelated])).square() for other in others]).mean()


def _standardised(values: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Of mean 0 and norm 1, so that an inner product is Pearson's correlation."""
    return F.normalize(values - values.mean(), dim=0)
