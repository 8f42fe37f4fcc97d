"""HACAN's whole training loss: hinges on the local scores, whose hardest negatives the global loss takes over.

`hacan_loss` mends what `original_hacan_loss` keeps:
- a pair, and another caption of its image, are never its negatives, not even when every margin is kept;
- all terms are means, so that their balance doesn't depend on the batch size.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from modalloy.align.losses import (
    LOSSES,
    GlobalPairs,
    LossName,
    Negatives,
    cross_modal,
    divergence,
    hardest_negatives,
    within_modality,
)
from modalloy.errors import ConfigError

_GLOBAL_WEIGHT, _BATCH_SIZE = 10.0, 64
_DIVERGENCE_MARGIN = 0.2


def local_hinge(
    score: Float[Tensor, "batch batch"],
    negatives: Negatives,
    *,
    margin: float = 0.2,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    """Max-violation hinges (VSE++) in both directions.

    r max(0, s_it- + margin - s_ii) + r max(0, s_v-i + margin - s_ii), r being a sum or a mean over i.

    Args:
        score: local scores, images by captions; row and column i are a pair.
        negatives: t- and v-, from `hardest_negatives(score, same)`.
        margin: by how much a match must score more than a negative.
        reduction: r: the mean over the images, and over the captions, that have a negative; or HACAN's sum over them.

    Returns:
        The loss; 0, with a gradient of 0, where nothing has a negative.

    Raises:
        ConfigError: the reduction is another.

    >>> score = torch.tensor([[0.5, 0.4], [0.1, 0.5]])
    >>> negatives = hardest_negatives(score, torch.eye(2, dtype=torch.bool))
    >>> round(local_hinge(score, negatives).item(), 4), round(local_hinge(score, negatives, reduction="sum").item(), 4)
    (0.1, 0.2)
    """
    if reduction not in ("mean", "sum"):
        raise ConfigError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    places = torch.arange(len(score), device=score.device)
    matching = score.diagonal()
    total = score.new_zeros(())
    for hardest, has in (
        (score[places, negatives.text], negatives.has_text),
        (score[negatives.image, places], negatives.has_image),
    ):
        violations = torch.where(has, F.relu(hardest + margin - matching), 0.0).sum()
        total = total + (violations / has.sum().clamp(min=1) if reduction == "mean" else violations)
    return total


def hacan_loss(
    score: Float[Tensor, "batch batch"],
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    same: Bool[Tensor, "batch batch"],
    *,
    loss: LossName = "gcd",
    margin: float = 0.2,
    global_weight: float = _GLOBAL_WEIGHT / _BATCH_SIZE,
) -> Float[Tensor, ""]:
    """HACAN's loss: local + global_weight * global, the global one on the hardest negatives by local score.

    Args:
        score: local scores, images by captions; row and column i are a pair.
        image: unit-norm global embeddings of the images.
        text: unit-norm global embeddings of the captions.
        same: pairs that must not be negatives.
        loss: the global loss.
        margin: of all hinges.
        global_weight: 10 in HACAN, whose local hinges are summed over a batch of 64: the same balance, of means.

    >>> score = torch.eye(2)
    >>> hacan_loss(score, score, score, torch.eye(2, dtype=torch.bool), loss="m_hn").item()
    0.0
    """
    negatives = hardest_negatives(score, same)
    overall = LOSSES[loss](image, text, same, margin=margin, negatives=negatives)
    return local_hinge(score, negatives, margin=margin) + global_weight * overall


def original_hacan_loss(
    score: Float[Tensor, "batch batch"],
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    *,
    loss: LossName = "gcd",
    margin: float = 0.2,
) -> Float[Tensor, ""]:
    """The value of HACAN's code (meter/modules/objectives.py, compute_irtr_my), to compare with.

    Its term of pairs whose two negatives are one pair is, by a broadcast, the share of such pairs times the mean over
    all pairs; and the margin of la1 and la2 is 0.2 whatever that of the hinges.

    Arguments as for `hacan_loss`; global_weight is 10.

    >>> score = torch.eye(2)
    >>> round(original_hacan_loss(score, score, score, loss="m_hn").item(), 4)  # item 0 is its own negative
    2.0
    """
    negatives = original_negatives(score, margin)
    local = local_hinge(
        score,
        hardest_negatives(score, torch.eye(len(score), dtype=torch.bool, device=score.device)),
        margin=margin,
        reduction="sum",
    )
    pairs = GlobalPairs(image, text, torch.zeros_like(score, dtype=torch.bool), margin, negatives)
    overall = cross_modal(pairs)
    if loss != "m_hn":
        share = pairs.of_one_pair.to(score.dtype).mean()
        same_pair = share * pairs.hinge(pairs.between_negatives, torch.ones_like(pairs.of_one_pair))
        overall = overall + within_modality(pairs) + same_pair
    if loss == "gcd":
        overall = overall + divergence(pairs, _DIVERGENCE_MARGIN)
    return local + _GLOBAL_WEIGHT * overall


def original_negatives(score: Float[Tensor, "batch batch"], margin: float = 0.2) -> Negatives:
    """The negatives of HACAN's code: the largest hinge of a row and of a column, captions of the same image included.

    Where every margin is kept, all hinges are 0 and the first item is taken, which may be the pair itself.

    >>> original_negatives(torch.eye(3)).text.tolist()
    [0, 0, 0]
    """
    diagonal = torch.eye(len(score), dtype=torch.bool, device=score.device)
    matching = score.detach().diagonal()
    chosen = []
    for scores in (score.detach(), score.detach().T):
        hinges = F.relu(scores + margin - matching[:, None]).masked_fill(diagonal, 0.0)
        largest = hinges.max(1)
        chosen.append(torch.where(largest.values > 0, largest.indices, 0))
    everything = torch.ones(len(score), dtype=torch.bool, device=score.device)
    return Negatives(chosen[0], chosen[1], everything, everything)
