"""Encoding a large batch at the memory of a small one: cached contrastive gradients (arXiv 2101.06983)."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modalloy.fusion.inputs import EncoderFeatures


def encode_in_chunks(
    encode: Callable[[Sequence[EncoderFeatures]], Float[Tensor, "_ dim"]],
    inputs: Sequence[EncoderFeatures],
    size: int | None,
) -> Float[Tensor, "batch dim"]:
    """The vectors of a batch, encoded `size` items at a time, with the gradient of the whole batch.

    As in GradCache (Gao et al., arXiv 2101.06983) the vectors are made without a graph, a loss takes its gradient with
    respect to all of them, and each chunk is then encoded again, with the same random numbers, to pass its part on.
    Here each chunk is a checkpoint of autograd, so that one `backward` does all that: a loss sees nothing of it, and
    nor do clipping, accumulation, schedules, autocast or data-parallel training.

    Args:
        encode: from the features of some items to their vectors; a vector must not depend on other items of the batch.
        inputs: each encoder's features of the batch.
        size: items encoded at a time; None for all at once, with no second pass.

    >>> features = EncoderFeatures(torch.ones(5, 2), torch.ones(5, 1, 2), torch.ones(5, 1, dtype=torch.bool))
    >>> weight = torch.ones((), requires_grad=True)
    >>> encode_in_chunks(lambda chunk: weight * chunk[0].embedding, [features], 2).shape
    torch.Size([5, 2])
    """
    if size is None:
        return encode(inputs)
    batch = len(inputs[0].embedding)
    chunks = [[features.items(slice(k, k + size)) for features in inputs] for k in range(0, batch, size)]
    return torch.cat([checkpoint(encode, chunk, use_reentrant=False) for chunk in chunks])
