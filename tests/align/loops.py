"""Local similarity by loops over pairs and words, which read like SCAN's and BFAN's formulas."""

import torch
from torch import Tensor

from modalloy.align import CrossAttention, Tokens


def loop_attention(logits: Tensor, focal: str | None) -> Tensor:
    """Weights of the contexts of one query token."""
    weights = logits.softmax(0)
    if focal is None:
        return weights
    if focal == "equal":
        kept = len(weights) * weights - weights.sum() > 1e-12
    else:
        kept = weights * weights.sqrt().sum() - (weights * weights.sqrt()).sum() > 1e-12
    weights = weights * kept if kept.any() else weights
    return weights / weights.sum()


def loop_score(image: Tensor, caption: Tensor, attention: CrossAttention) -> Tensor:
    """The score of one pair, of tokens without padding."""
    context, query = (image, caption) if attention.direction == "t2i" else (caption, image)
    if not len(context) or not len(query):
        return image.new_zeros(())
    affinity = torch.nn.functional.leaky_relu(context @ query.T, 0.1)
    rows = [row / (row.norm() + 1e-8) for row in affinity]
    cosines = []
    for word, token in enumerate(query):
        weights = loop_attention(attention.smoothing * torch.stack([row[word] for row in rows]), attention.focal)
        attended = sum(weight * vector for weight, vector in zip(weights, context, strict=True))
        cosines.append(token @ attended / (token.norm() * attended.norm()).clamp(min=1e-8))
    return torch.stack(cosines).mean()


def loop_similarity(images: Tokens, captions: Tokens, attention: CrossAttention) -> Tensor:
    def real(tokens: Tokens) -> list[Tensor]:
        return [values[mask] for values, mask in zip(tokens.values, tokens.mask, strict=True)]

    return torch.stack([torch.stack([loop_score(i, c, attention) for c in real(captions)]) for i in real(images)])
