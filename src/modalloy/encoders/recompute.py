"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): memory saved in training, paid with computation.

Notable: it works on any network whose blocks stand in a `ModuleList`, in training and evaluation mode alike; that of
transformers acts in training mode alone, and ConvNeXt, MPNet and ALBERT lack it.
"""

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from modalloy.errors import ConfigError


def recompute_blocks(network: nn.Module) -> None:
    """Makes a network keep only the inputs of its blocks for the backward pass, which computes the rest again.

    Random draws such as dropout's are the same the second time. Without gradients nothing changes.

    Raises:
        ConfigError: the network has no blocks.

    >>> import torch
    >>> network = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))])
    >>> recompute_blocks(network)
    >>> network[0](torch.ones(1, 2)).sum().backward()
    """
    blocks = list(_innermost_blocks(network))
    if not blocks:
        raise ConfigError(f"{type(network).__name__} has no blocks whose activations could be computed again.")
    for block in blocks:
        if "forward" not in vars(block):  # else it was called before
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _innermost_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Members of lists that hold no list: of nested ones the outer, such as a stage of ConvNeXt, would save little."""
    for members in network.modules():
        if isinstance(members, nn.ModuleList):
            yield from (each for each in members if not any(isinstance(part, nn.ModuleList) for part in each.modules()))
