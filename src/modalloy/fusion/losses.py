"""HADA's training losses: image-text contrast over soft targets, and image-text matching (arXiv 2301.04742, 3.3)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

_EXCLUDED = torch.finfo(torch.float32).min


def contrastive_loss(
    logits: Float[Tensor, "queries keys"],
    targets: Float[Tensor, "queries keys"],
) -> Float[Tensor, ""]:
    """Cross entropy between target distributions and the softmax of the logits, averaged over the queries.

    With one positive per query this is InfoNCE; with several, each carries its share (HADA, equation 6).

    Args:
        logits: similarities divided by the temperature; `exclude` gives those of pairs that don't count.
        targets: rows that sum to 1, zero where a pair is excluded.

    >>> import torch
    >>> round(contrastive_loss(torch.zeros(2, 4), torch.eye(2, 4)).item(), 4)  # log 4
    1.3863
    """
    return -(targets * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


def positive_targets(positives: Bool[Tensor, "queries keys"]) -> Float[Tensor, "queries keys"]:
    """Spreads each query's target evenly over its positives; a query has at least one.

    >>> import torch
    >>> positive_targets(torch.tensor([[True, True, False, False]]))
    tensor([[0.5000, 0.5000, 0.0000, 0.0000]])
    """
    counts = positives.float()
    return counts / counts.sum(dim=-1, keepdim=True)


def exclude(
    logits: Float[Tensor, "queries keys"], excluded: Bool[Tensor, "queries keys"]
) -> Float[Tensor, "queries keys"]:
    """Takes pairs that are neither positive nor honest negatives out of the softmax."""
    return logits.masked_fill(excluded, _EXCLUDED)


def distilled_targets(
    targets: Float[Tensor, "queries keys"],
    momentum_logits: Float[Tensor, "queries keys"],
    share: float,
) -> Float[Tensor, "queries keys"]:
    """Mixes the momentum model's own distribution into the targets (momentum distillation, as in ALBEF).

    Args:
        targets: distributions from the ground truth.
        momentum_logits: the momentum model's similarities divided by the temperature.
        share: weight of the momentum model's distribution, in [0, 1].
    """
    return share * momentum_logits.softmax(dim=-1) + (1 - share) * targets


class MatchingHead(nn.Module):
    """Tells matching from other pairs: W [h_p, h_s, |h_p - h_s|, h_p * h_s], a logit per pair (HADA, eq. 8).

    Args:
        dim: width of the fused vectors.
        dropout: probability on what the linear layer reads.
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(4 * dim, 1)

    def forward(self, image: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """The pairs' logits."""
        return self._logits(torch.cat([image, text, (image - text).abs(), image * text], dim=-1)).squeeze(-1)

    def _logits(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch 1"]:
        return self.linear(self.dropout(features))


def matching_loss(
    head: MatchingHead,
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    similarity: Float[Tensor, "batch batch"],
    related: Bool[Tensor, "batch batch"],
    sampling_temperature: float | Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Binary cross entropy over each pair, a negative text and a negative image of it (eq. 8).

    The negatives are the hardest ones, as in the paper, or drawn by the softmax of the similarities, as in ALBEF
    and the HADA authors' code.

    A pair whose row (or column) holds no unrelated item simply has no negative of that kind, so that a batch of one
    image neither crashes nor learns a false negative.

    Args:
        head: the discriminator.
        image: fused image vectors.
        text: fused text vectors; row k belongs to image row k.
        similarity: by which the negatives are chosen, image rows, text columns.
        related: True for pairs that aren't negatives: the same image, or items of one family.
        sampling_temperature: what the similarities are divided by before their softmax, by which negatives are drawn
            (from torch's global generator); by default the hardest are taken.
    """
    unrelated = ~related
    with_text, with_image = unrelated.any(dim=1), unrelated.any(dim=0)
    scores = similarity.detach().masked_fill(related, float("-inf"))
    negative_text = _negatives(scores[with_text], sampling_temperature)
    negative_image = _negatives(scores.T[with_image], sampling_temperature)
    # One call: a head with a BatchNorm would take off what tells matching from other pairs if it saw each kind alone.
    logits = head(
        torch.cat([image, image[with_text], image[negative_image]]),
        torch.cat([text, text[negative_text], text[with_image]]),
    )
    labels = torch.zeros_like(logits)
    labels[: len(image)] = 1
    return F.binary_cross_entropy_with_logits(logits, labels)


def _negatives(
    scores: Float[Tensor, "queries candidates"], temperature: float | Float[Tensor, ""] | None
) -> Int[Tensor, " queries"]:
    """For each query the position of one candidate whose score isn't -inf; there is at least one."""
    if temperature is None:
        return scores.argmax(dim=1)
    if not len(scores):
        return scores.new_empty(0, dtype=torch.int64)
    # Related candidates leave before the softmax, not after it: at a small temperature nothing might remain to draw.
    return (scores / temperature).softmax(dim=1).multinomial(1).squeeze(1)
