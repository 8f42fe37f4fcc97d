"""The weighted similarity of HADA, and the one vector into which it folds."""

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor, nn

from modalloy.errors import ConfigError

SMALLEST_SHARE, LARGEST_SHARE = 0.1, 0.9


def fold(parts: Sequence[Float[Tensor, "batch _"]], weights: Float[Tensor, " parts"]) -> Float[Tensor, "batch dim"]:
    """Concatenates unit-norm vectors, each scaled by the root of its weight.

    The inner product of two folded vectors is the weighted sum of their parts' inner products, so that one vector
    search answers by a weighted similarity. Weights that sum to 1 give unit-norm folded vectors.

    Args:
        parts: one batch of unit-norm vectors per similarity.
        weights: the similarities' weights, not negative.

    >>> import torch
    >>> image, text = torch.eye(2), torch.ones(2, 2) / 2**0.5
    >>> weights = torch.tensor([0.25, 0.75])
    >>> folded = fold([image, text], weights) @ fold([text, text], weights).T
    >>> torch.allclose(folded, 0.25 * image @ text.T + 0.75 * text @ text.T)
    True
    """
    roots = weights.sqrt()
    return torch.cat([part * root for part, root in zip(parts, roots, strict=True)], dim=-1)


def folded_slices(dims: Sequence[int]) -> list[slice]:
    """Where in a folded vector each part stands.

    >>> folded_slices([3, 2])
    [slice(0, 3, None), slice(3, 5, None)]
    """
    ends = list(accumulate(dims))
    return [slice(end - dim, end) for dim, end in zip(dims, ends, strict=True)]


def check_weights(weights: Sequence[float]) -> None:
    """Refuses weights that no sum of similarities can have.

    Raises:
        ConfigError: a weight is negative or not finite, or all are zero.
    """
    if not all(0 <= weight < math.inf for weight in weights) or not sum(weights) > 0:
        raise ConfigError(f"weights must be finite, not negative and not all zero, got {list(weights)}.")


class SimilarityWeights(nn.Module):
    """The learned weights of the similarity (1 - a) <h_p, h_s> + sum_i a_i <h_v_i, h_w_i> (HADA, section 3.4).

    The paper weighs one input, its best; here any number of inputs may enter, each with an a_i of its own, and
    a = sum_i a_i. Without inputs the similarity is the fused one alone (the paper's first stage).

    Args:
        inputs: how many input encoders enter.
        share: a at the start, spread evenly over the inputs; kept in [0.1, 0.9] by `clamp_`.
    """

    def __init__(self, inputs: int, share: float = 0.5) -> None:
        super().__init__()
        if not SMALLEST_SHARE <= share <= LARGEST_SHARE:
            raise ConfigError(f"the inputs' share must lie in [0.1, 0.9], got {share}.")
        self.alpha = nn.Parameter(torch.full((inputs,), share / max(inputs, 1)))

    def forward(self) -> Float[Tensor, " parts"]:
        """The weights of the fused similarity and of each input's, in this order; they sum to 1."""
        # The roots of an imported a = 1 must stay real, whatever its sum rounds to.
        return torch.cat([(1 - self.alpha.sum()).clamp(min=0).reshape(1), self.alpha])

    @torch.no_grad()
    def set_(self, weights: Sequence[float]) -> None:
        """Takes weights as `forward` gives them: the fused similarity's, then each input's.

        Raises:
            ConfigError: there isn't one for each, one is negative, or they don't sum to 1.
        """
        expected = self.alpha.numel() + 1
        # Written so that a NaN is refused too.
        if len(weights) != expected or not min(weights) >= 0 or not abs(sum(weights) - 1) < 1e-6:
            raise ConfigError(f"expected {expected} weights of at least 0 that sum to 1, got {list(weights)}.")
        self.alpha.copy_(torch.tensor(weights[1:]))

    @torch.no_grad()
    def clamp_(self) -> None:
        """Brings a back into [0.1, 0.9] and each a_i to 0 or more, as the paper clamps its one weight."""
        if self.alpha.numel() == 0:
            return
        self.alpha.clamp_(min=0)
        total = self.alpha.sum()
        if total < 1e-6:
            self.alpha.fill_(SMALLEST_SHARE / self.alpha.numel())
        else:
            self.alpha.mul_(total.clamp(SMALLEST_SHARE, LARGEST_SHARE) / total)
