"""What training hides of a fuser's inputs, so that the fuser relies on no one token and on no one encoder."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from modalloy.fusion.inputs import EncoderFeatures, presence


def drop_tokens(features: EncoderFeatures, probability: float) -> EncoderFeatures:
    """Keeps a random subset of each item's real tokens, and always the summary token.

    Of n tokens beside the summary, floor(n * probability) are dropped. The kept ones are gathered, so that whatever
    reads them has less to do.

    Args:
        features: one encoder's.
        probability: share of the tokens to drop, in [0, 1).
    """
    length = features.tokens.shape[1]
    width = length - math.floor((length - 1) * probability)
    if width >= length:
        return features
    order = torch.rand(features.mask.shape, device=features.mask.device).masked_fill_(~features.mask, 2)
    order[:, 0] = -1
    kept = order.argsort(dim=1)[:, :width]
    real = features.mask.sum(1, keepdim=True)
    counts = real - ((real - 1) * probability).floor()
    mask = features.mask.gather(1, kept) & (torch.arange(width, device=kept.device) < counts)
    tokens = features.tokens.gather(1, kept[:, :, None].expand(-1, -1, features.tokens.shape[2]))
    return replace(features, tokens=tokens, mask=mask)


def drop_encoders(inputs: Sequence[EncoderFeatures], probability: float) -> list[EncoderFeatures]:
    """Lets each item lose one of its encoders, evenly drawn, with the given probability; never its last.

    Args:
        inputs: every encoder's features of the same items.
        probability: that an item loses an encoder.
    """
    present = presence(inputs)
    loses = (torch.rand(len(present), device=present.device) < probability) & (present.sum(1) > 1)
    chosen = torch.rand(present.shape, device=present.device).masked_fill_(~present, -1).argmax(1)
    present[loses, chosen[loses]] = False
    return [replace(features, present=present[:, position]) for position, features in enumerate(inputs)]
