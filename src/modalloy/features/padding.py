"""From packed, ragged tokens to a padded batch with its mask."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def pad(
    packed: Float[Tensor, "packed width"], lengths: Int[Tensor, "batch"]
) -> tuple[Float[Tensor, "batch tokens width"], Bool[Tensor, "batch tokens"]]:
    """Pads packed tokens with zeros to the longest item of the batch; the mask is True where a token is.

    Args:
        packed: the items' tokens one after the other; the padded tokens keep its type and device, and share its memory
            where all items are of one length.
        lengths: tokens of each item; an item may have none.

    >>> tokens, mask = pad(torch.arange(6.0).view(3, 2), torch.tensor([1, 2]))
    >>> tokens.tolist()
    [[[0.0, 1.0], [0.0, 0.0]], [[2.0, 3.0], [4.0, 5.0]]]
    >>> mask.tolist()
    [[True, False], [True, True]]
    """
    if lengths.numel() == 0:
        return packed.new_zeros(0, 0, packed.shape[1]), torch.zeros(0, 0, dtype=torch.bool, device=packed.device)
    counts = lengths.tolist()
    items = packed.split(counts)
    if min(counts) == max(counts):
        padded = packed.unflatten(0, (len(counts), counts[0]))
    else:
        padded = pad_sequence(list(items), batch_first=True)
    positions = torch.arange(padded.shape[1], device=packed.device)
    return padded, positions < lengths.to(packed.device)[:, None]
