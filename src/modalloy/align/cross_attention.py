"""SCAN's cross attention between images and captions, as a few large products.

Each token of a query item attends to the tokens of a context item; the pair's score is the mean cosine of the query's
tokens with what they attend to. Three identities keep the cost near that of the one unavoidable product, the
affinities of all tokens with all tokens:

- the attended vectors are never made: <q, sum_j w_j c_j> = sum_j w_j <q, c_j> needs the affinities alone, and
  |sum_j w_j c_j|^2 = w^T G w the context's Gram matrix G, made once per item;
- a cosine doesn't depend on the length of its vectors, nor does focal attention on the scale of the weights, so that
  the softmax is never divided by its sum;
- a padded token is a zero: it adds nothing to these sums, whatever its weight, and no mask is applied to them.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.errors import ConfigError

EPSILON = 1e-8
_SLOPE = 0.1
# Above it w^T G w could leave float32.
_MOST_SMOOTHING = 20.0
# Of w^T G w. The weights aren't divided by their sum and so never tiny: less can only come of tokens that are zeros.
_LEAST_SQUARE = 1e-24


@dataclass(frozen=True)
class CrossAttention:
    """How one modality's tokens attend to the other's (SCAN, arXiv 1803.08024; focal: BFAN, arXiv 1909.11416)."""

    direction: Literal["t2i", "i2t"] = "t2i"
    """Which tokens attend to which: "t2i", a caption's to those of an image; "i2t", the other way round."""
    focal: Literal["prob", "equal"] | None = None
    """Which weights stay: all, those above their mean ("equal"), or above a mean that favours large ones ("prob")."""
    smoothing: float = 9.0
    """Inverse temperature of the softmax."""

    def __post_init__(self) -> None:
        if self.direction not in ("t2i", "i2t"):
            raise ConfigError(f"direction must be 't2i' or 'i2t', got {self.direction!r}.")
        if self.focal not in ("prob", "equal", None):
            raise ConfigError(f"focal must be 'prob', 'equal' or None, got {self.focal!r}.")
        if not 0 < self.smoothing <= _MOST_SMOOTHING:
            raise ConfigError(f"smoothing must be above 0 and at most {_MOST_SMOOTHING:g}, got {self.smoothing}.")


SCAN = CrossAttention()
"""Every weight stays."""
FOCAL_PROB = CrossAttention(focal="prob")
"""HACAN's, on Flickr30k; on COCO its direction is "i2t"."""


class Operands(NamedTuple):
    """What scores are made of; padded tokens are zeros. The first four have gradients."""

    context: Float[Tensor, "contexts positions dim"]
    gram: Float[Tensor, "contexts positions positions"]
    """context context^T; of bfloat16 tokens in bfloat16."""
    query: Float[Tensor, "queries words dim"]
    norm: Float[Tensor, "queries words"]
    """Lengths of the query's tokens, at least 1e-8; their dtype is that of all but products of matrices."""
    present: Float[Tensor, "contexts positions"]
    """1 where a token is, 0 where there is padding."""
    share: Float[Tensor, "queries words"]
    """What a token's cosine counts in the mean; 0 for padding."""

    def block(self, contexts: slice, positions: slice, queries: slice, words: slice) -> "Operands":
        """Some contexts and queries, without the padding that each of them has."""
        return Operands(
            self.context[contexts, positions],
            self.gram[contexts, positions, positions],
            self.query[queries, words],
            self.norm[queries, words],
            self.present[contexts, positions],
            self.share[queries, words],
        )

    def pairs(self, pairs: Int[Tensor, "pairs 2"]) -> "Operands":
        """The context and the query of each pair."""
        context, query = pairs.unbind(1)
        return Operands(
            self.context.index_select(0, context),
            self.gram.index_select(0, context),
            self.query.index_select(0, query),
            self.norm.index_select(0, query),
            self.present.index_select(0, context),
            self.share.index_select(0, query),
        )


def block_scores(operands: Operands, attention: CrossAttention) -> Float[Tensor, "contexts queries"]:
    """Scores of every context with every query."""
    affinity = operands.context.flatten(0, 1) @ operands.query.flatten(0, 1).T
    affinity = affinity.view(*operands.context.shape[:2], *operands.query.shape[:2])
    return affinity_scores(affinity, operands.gram, operands.norm, operands.present, operands.share, attention)


def pair_scores(operands: Operands, attention: CrossAttention) -> Float[Tensor, "pairs"]:
    """Scores of each context with the query in the same place."""
    affinity = (operands.context @ operands.query.mT)[:, :, None]
    norm, share = operands.norm[:, None], operands.share[:, None]
    return affinity_scores(affinity, operands.gram, norm, operands.present, share, attention)[:, 0]


class Attended(NamedTuple):
    """How each of some pairs attends."""

    weights: Float[Tensor, "pairs positions words"]
    """Of each position for each word; they add up to 1, and a padded token has none."""
    parts: Float[Tensor, "pairs positions words"]
    """What each adds to the pair's score, which is their sum."""


def pair_attention(operands: Operands, attention: CrossAttention) -> Attended:
    """The weights by which `pair_scores` scores each context with the query in the same place."""
    affinity = (operands.context @ operands.query.mT)[:, :, None].to(operands.norm.dtype)
    norm, share = operands.norm[:, None], operands.share[:, None]
    weights = _weights(affinity, operands.present, attention)
    product, lengths = _attend(weights, affinity.clone(), operands.gram, norm)
    counted = weights * operands.present[:, :, None, None] * (share > 0)[:, None]
    # The quotient by the larger of the two is the cosine between -1 and 1.
    parts = counted * affinity * (share / torch.maximum(lengths, product.abs()))[:, None]
    shares = counted / counted.sum(1, keepdim=True).clamp(min=torch.finfo(counted.dtype).tiny)
    return Attended(shares[:, :, 0], parts[:, :, 0])


def affinity_scores(
    affinity: Float[Tensor, "contexts positions queries words"],
    gram: Float[Tensor, "contexts positions positions"],
    norm: Float[Tensor, "*queries words"],
    present: Float[Tensor, "contexts positions"],
    share: Float[Tensor, "*queries words"],
    attention: CrossAttention,
) -> Float[Tensor, "contexts queries"]:
    """Scores of contexts with queries, each context's own or all the same, by the affinities of their tokens.

    The affinities are overwritten where no gradient needs them.
    """
    affinity = affinity.to(norm.dtype)
    product, lengths = _attend(_weights(affinity, present, attention), affinity, gram, norm)
    cosine = product / lengths
    # Where contexts cancel each other, the square is a rounding error, and the quotient could be any number.
    return (cosine.clamp(-1, 1) * share).sum(-1)


def _weights(
    affinity: Float[Tensor, "contexts positions queries words"],
    present: Float[Tensor, "contexts positions"],
    attention: CrossAttention,
) -> Float[Tensor, "contexts positions queries words"]:
    """Not divided by their sum; those of padded positions have no meaning."""
    signal = F.leaky_relu(affinity, _SLOPE)
    length = torch.linalg.vector_norm(signal, dim=-1, keepdim=True)
    # No logit is larger than `smoothing`, so that no maximum has to be taken off before the exponential.
    weights = _times(signal, attention.smoothing / (length + EPSILON)).exp_()
    if attention.focal is None:
        return weights
    return _times(weights, _kept(weights.detach(), present, attention.focal))


def _attend(
    weights: Float[Tensor, "contexts positions queries words"],
    affinity: Float[Tensor, "contexts positions queries words"],
    gram: Float[Tensor, "contexts positions positions"],
    norm: Float[Tensor, "*queries words"],
) -> tuple[Float[Tensor, "contexts queries words"], Float[Tensor, "contexts queries words"]]:
    """Inner products of the query's tokens with what they attend to, and of their lengths.

    The affinities are overwritten where no gradient needs them.
    """
    flat = weights.flatten(2)
    attended = (gram @ flat.to(gram.dtype)).to(flat.dtype)
    product = _times(affinity, weights).sum(1)
    square = _times(attended, flat).sum(1).view_as(product)
    return product, norm * square.clamp(min=_LEAST_SQUARE).sqrt()


def _times(one: Float[Tensor, "..."], other: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Their product; where no gradient needs `one`, in its place: new memory would cost as much as the product."""
    return one * other if torch.is_grad_enabled() else one.mul_(other)


def _kept(
    weights: Float[Tensor, "contexts positions queries words"],
    present: Float[Tensor, "contexts positions"],
    focal: Literal["prob", "equal"],
) -> Float[Tensor, "contexts positions queries words"]:
    """1 where focal attention keeps a weight, 0 elsewhere.

    "equal" keeps n a_i > sum_j a_j, "prob" a_i sum_j sqrt(a_j) > sum_j a_j sqrt(a_j): both compare with a mean, which
    is lowered by its rounding error. So the largest weight always stays, and equal weights all do, where HACAN's code
    divides 0 by 0.
    """
    flat, counted = weights.flatten(2), present[:, None]
    if focal == "equal":
        mean = (counted @ flat) / counted.sum(-1, keepdim=True)
    else:
        root = flat.sqrt()
        mean = (counted @ (flat * root)) / (counted @ root)
    # By the item's own length, so that its score doesn't depend on the padding that its block has.
    slack = 1 - 2 * torch.finfo(flat.dtype).eps * counted.sum(-1, keepdim=True)
    # As numbers at once: torch.where, and products with truth values, take many times as long on a CPU.
    return torch.gt(flat, mean * slack, out=torch.empty_like(flat)).view_as(weights)
