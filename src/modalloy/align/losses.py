"""HACAN's losses on global embeddings: M_HN, F_HN and GCD, all hinges on in-batch hard negatives.

Notable, where HACAN's own code differs:
- a pair is never its own negative, and neither is another caption of its image nor an item of its family;
- every term is a mean over the pairs that have the negative in question, so no term's weight depends on the
  batch size, and a batch without any negative gives 0;
- the same-pair term is taken pair by pair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

LossName = Literal["gcd", "f_hn", "m_hn"]


@dataclass(frozen=True)
class Negatives:
    """For each pair of a batch, which texts and images are its negatives, as indices into the batch."""

    text: Int[Tensor, "batch"]
    """t-: the negative text of each image; anything where `has_text` is False."""
    image: Int[Tensor, "batch"]
    """v-: the negative image of each text; anything where `has_image` is False."""
    has_text: Bool[Tensor, "batch"]
    """Whether the image has an allowed negative text."""
    has_image: Bool[Tensor, "batch"]
    """Whether the text has an allowed negative image."""


def same_item(groups: Int[Tensor, "batch"]) -> Bool[Tensor, "batch batch"]:
    """Which items of a batch are of one group (family), and so never each other's negatives.

    >>> same_item(torch.tensor([4, 7, 4]))
    tensor([[ True, False,  True],
            [False,  True, False],
            [ True, False,  True]])
    """
    return groups[:, None] == groups[None, :]


def hardest_negatives(similarity: Float[Tensor, "batch batch"], same: Bool[Tensor, "batch batch"]) -> Negatives:
    """The most similar allowed text of each image (row), and image of each text (column).

    Args:
        similarity: images by texts; the global similarity, or the local branch's score.
        same: pairs that must not be negatives; the diagonal never is one.

    >>> similarity = torch.tensor([[0.9, 0.5, 0.8], [0.1, 0.7, 0.2], [0.3, 0.6, 0.4]])
    >>> negatives = hardest_negatives(similarity, same_item(torch.tensor([0, 1, 0])))
    >>> negatives.text.tolist(), negatives.image.tolist()
    ([1, 2, 1], [1, 2, 1])
    """
    forbidden = same | torch.eye(len(same), dtype=torch.bool, device=same.device)
    scores = similarity.detach().masked_fill(forbidden, -torch.inf)
    return Negatives(scores.argmax(1), scores.argmax(0), ~forbidden.all(1), ~forbidden.all(0))


def m_hn(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    same: Bool[Tensor, "batch batch"],
    *,
    margin: float = 0.2,
    negatives: Negatives | None = None,
) -> Float[Tensor, ""]:
    """M_HN of HACAN (VSE++'s max of hinges): h<v,t-> + h<v-,t>, with h(x) = mean max(0, x + margin - <v,t>).

    Args:
        image: unit-norm image embeddings.
        text: unit-norm text embeddings; row i belongs to image i.
        same: pairs that must not be negatives.
        margin: by how much a match must be more similar than a negative.
        negatives: t- and v-; by default the hardest by global similarity.

    >>> image, text = torch.eye(2), torch.eye(2)
    >>> m_hn(image, text, same_item(torch.arange(2))).item()
    0.0
    """
    pairs = GlobalPairs(image, text, same, margin, negatives)
    return cross_modal(pairs)


def f_hn(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    same: Bool[Tensor, "batch batch"],
    *,
    margin: float = 0.2,
    negatives: Negatives | None = None,
) -> Float[Tensor, ""]:
    """F_HN of HACAN: M_HN + h<v,v-> + h<t,t-> + s.

    s is the mean of max(0, <v-,t-> + margin - <v,t>) over the pairs whose two negatives are one same pair.

    Arguments as for `m_hn`.

    >>> image, text = torch.eye(2), torch.eye(2)
    >>> round(f_hn(image, text, same_item(torch.arange(2))).item(), 4)  # s = margin
    0.2
    """
    pairs = GlobalPairs(image, text, same, margin, negatives)
    return cross_modal(pairs) + within_modality(pairs) + _same_pair(pairs)


def gcd(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    same: Bool[Tensor, "batch batch"],
    *,
    margin: float = 0.2,
    negatives: Negatives | None = None,
) -> Float[Tensor, ""]:
    """GCD, the global contrastive divergence of HACAN: F_HN + la1 + la2.

    la1 is the mean of max(0, |<v,v_j> - <t,t_j>| - margin), j being t-'s index; la2 the same with v-'s index.

    Arguments as for `m_hn`.

    >>> image, text = torch.eye(2), torch.eye(2)
    >>> round(gcd(image, text, same_item(torch.arange(2))).item(), 4)
    0.2
    """
    pairs = GlobalPairs(image, text, same, margin, negatives)
    return cross_modal(pairs) + within_modality(pairs) + _same_pair(pairs) + divergence(pairs, margin)


def info_nce(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    same: Bool[Tensor, "batch batch"],
    *,
    temperature: float = 0.07,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE over the batch (CLIP, arXiv 2103.00020), without pairs that must not be negatives.

    Not one of HACAN's losses: it looks at all negatives, and so gets embeddings started where hinges on the
    hardest ones collapse them.

    >>> round(info_nce(torch.eye(2), torch.eye(2), same_item(torch.arange(2)), temperature=1.0).item(), 4)
    0.3133
    """
    return info_nce_of_scores(image @ text.T, same, temperature=temperature)


def info_nce_of_scores(
    score: Float[Tensor, "batch batch"], same: Bool[Tensor, "batch batch"], *, temperature: float = 0.07
) -> Float[Tensor, ""]:
    """`info_nce` of any scores, images by texts, such as the local branch's."""
    forbidden = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    logits = (score / temperature).masked_fill(forbidden, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


LOSSES: dict[LossName, Callable[..., Tensor]] = {"gcd": gcd, "f_hn": f_hn, "m_hn": m_hn}


class GlobalPairs:
    """A batch of pairs with their negatives looked up; arguments as for `m_hn`."""

    def __init__(
        self,
        image: Float[Tensor, "batch dim"],
        text: Float[Tensor, "batch dim"],
        same: Bool[Tensor, "batch batch"],
        margin: float,
        negatives: Negatives | None,
    ) -> None:
        if negatives is None:
            negatives = hardest_negatives(image.detach() @ text.detach().T, same)
        self.image, self.text, self.margin = image, text, margin
        self.negatives = negatives
        self.image_negative, self.text_negative = image[negatives.image], text[negatives.text]
        self.matching = _dot(image, text)
        self.between_negatives = _dot(self.image_negative, self.text_negative)
        has_both = negatives.has_text & negatives.has_image
        self.of_one_pair = has_both & (negatives.text == negatives.image)

    def hinge(self, similarity: Float[Tensor, "batch"], counted: Bool[Tensor, "batch"]) -> Float[Tensor, ""]:
        """h of the similarities, over the counted pairs."""
        return _mean(F.relu(similarity + self.margin - self.matching), counted)


def cross_modal(pairs: GlobalPairs) -> Float[Tensor, ""]:
    """h<v,t-> + h<v-,t>."""
    return pairs.hinge(_dot(pairs.image, pairs.text_negative), pairs.negatives.has_text) + pairs.hinge(
        _dot(pairs.image_negative, pairs.text), pairs.negatives.has_image
    )


def within_modality(pairs: GlobalPairs) -> Float[Tensor, ""]:
    """h<v,v-> + h<t,t->."""
    return pairs.hinge(_dot(pairs.image, pairs.image_negative), pairs.negatives.has_image) + pairs.hinge(
        _dot(pairs.text, pairs.text_negative), pairs.negatives.has_text
    )


def _same_pair(pairs: GlobalPairs) -> Tensor:
    return pairs.hinge(pairs.between_negatives, pairs.of_one_pair)


def divergence(pairs: GlobalPairs, margin: float) -> Float[Tensor, ""]:
    """la1 + la2 of `gcd`."""
    terms = []
    for index, counted in (
        (pairs.negatives.text, pairs.negatives.has_text),
        (pairs.negatives.image, pairs.negatives.has_image),
    ):
        gap = (_dot(pairs.image, pairs.image[index]) - _dot(pairs.text, pairs.text[index])).abs()
        terms.append(_mean(F.relu(gap - margin), counted))
    return terms[0] + terms[1]


def _dot(a: Float[Tensor, "batch dim"], b: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch"]:
    return (a * b).sum(-1)


def _mean(values: Float[Tensor, "batch"], counted: Bool[Tensor, "batch"]) -> Float[Tensor, ""]:
    """Mean over the counted values; 0, with a gradient of 0, where there are none."""
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)
