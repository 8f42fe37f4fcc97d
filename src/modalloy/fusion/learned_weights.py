"""Weights of similarities learned by contrast: a smooth criterion, which follows few pairs less closely than RSum."""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from modalloy.errors import DataError
from modalloy.fusion.part_scores import PartScores

_TEMPERATURE, _SMALLEST_TEMPERATURE = 0.07, 0.001


def learn_weights(parts: PartScores) -> tuple[float, ...]:
    """The weights w on the simplex and the temperature t with the least contrastive loss, of which w is returned.

    The loss is the cross entropy of softmax(sum_k w_k s_k / t), over the captions for each image (whose own captions
    share the target evenly) and over the images for each caption, averaged. It is convex in v = w / t, with v not
    negative, so L-BFGS-B finds its minimum, and weights that are zero there come out as zero. If no part tells pairs
    apart (v = 0), the weights are even. Where some weights rank all pairs rightly, the loss falls with t and has no
    minimum: the search then ends at a bound (each v at most 1,000) or before, with some of the weights that do.

    Args:
        parts: what is weighed, on pairs that no part was fitted on.

    Raises:
        DataError: a score isn't finite.

    >>> from modalloy.evaluation import EmbeddingScores
    >>> right, wrong = EmbeddingScores(torch.eye(9), torch.eye(9)), EmbeddingScores(torch.eye(9), -torch.eye(9))
    >>> learn_weights(PartScores([right, wrong], torch.arange(9)))
    (1.0, 0.0)
    """
    count = len(parts)
    captions = parts.caption_image.bincount(minlength=parts.n_images)
    query = (captions > 0) / (captions > 0).sum().double()
    own = parts.positives().double()
    # How much each caption's own score counts: as its image's share of the target, and as a query itself.
    share = (query / captions.clamp(min=1))[parts.caption_image] + 1 / parts.n_captions
    positive = (own * share).sum(1) / 2

    def loss(values: Float[np.ndarray, " parts"]) -> tuple[float, Float[np.ndarray, " parts"]]:
        spread, gradient = _spread(parts, torch.from_numpy(values), query)
        value = spread - float(positive @ torch.from_numpy(values))
        if not math.isfinite(value):
            raise DataError("weights can't be learned from scores that aren't finite; extract the features again.")
        return value, (gradient - positive).numpy()

    found = minimize(
        loss,
        np.full(count, 1 / (_TEMPERATURE * count)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, 1 / _SMALLEST_TEMPERATURE)] * count,
        options={"ftol": 1e-12, "gtol": 1e-8, "maxiter": 500},
    ).x
    total = float(found.sum())
    return tuple(float(value) / total for value in found) if total > 0 else (1 / count,) * count


def _spread(
    parts: PartScores, values: Float[Tensor, " parts"], query: Float[Tensor, " images"]
) -> tuple[float, Float[Tensor, " parts"]]:
    """Half the sum of the mean log-partition functions of both directions, and its gradient; in blocks of images."""

    def logits_of(rows: slice) -> tuple[Float[Tensor, "parts images captions"], Float[Tensor, "images captions"]]:
        block = parts.block(rows).double()
        return block, torch.tensordot(values, block, 1)

    of_images, of_captions = [], torch.full((parts.n_captions,), -torch.inf, dtype=torch.float64)
    for rows in parts.row_slices():
        _, logits = logits_of(rows)
        of_images.append(logits.logsumexp(1))
        of_captions = torch.logaddexp(of_captions, logits.logsumexp(0))
    gradient = torch.zeros_like(values)
    for rows, of_rows in zip(parts.row_slices(), of_images, strict=True):
        block, logits = logits_of(rows)
        by_image = (logits - of_rows[:, None]).exp() * query[rows, None]
        by_caption = (logits - of_captions).exp() / parts.n_captions
        gradient += torch.tensordot(block, by_image + by_caption, 2) / 2
    return float(query @ torch.cat(of_images) + of_captions.mean()) / 2, gradient
