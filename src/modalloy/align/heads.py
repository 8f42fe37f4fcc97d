"""HACAN's global heads: from a frozen backbone's embedding into the space that images and texts share."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from modalloy.errors import ConfigError

_EPSILON = 1e-8


@dataclass(frozen=True)
class HeadConfig:
    """Shape of a global head; HACAN's own, on 1024 wide images, is:

    >>> HeadConfig(1024, (1024, 896, 768)).dim
    768
    """

    input_width: int
    """Length of the backbone's embedding."""
    widths: tuple[int, ...]
    """Output width of each linear layer; the last is the length of the shared embedding."""
    dropout: float = 0.2
    """Probability that an output of the first layer is dropped in training."""
    negative_slope: float = 0.01
    """Slope of the LeakyReLU for negative inputs."""
    last_activation: bool = True
    """Whether a LeakyReLU also follows the last layer, as in HACAN."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.input_width, *self.widths) < 1:
            raise ConfigError(
                f"A head needs at least one layer, and widths of at least 1; got {self.input_width} -> {self.widths}."
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {self.dropout}.")

    @property
    def dim(self) -> int:
        """Length of the shared embedding."""
        return self.widths[-1]


class GlobalHead(nn.Module):
    """HACAN's global head: linear layers with LeakyReLU, dropout after the first, then x / (||x|| + 1e-8).

    The input is the backbone's unit-norm embedding; the head multiplies it by the square root of its length,
    so that its components have the scale of a LayerNorm's output, which is what HACAN's heads read. `center` is
    taken off first; it is zero, as in HACAN, until it is set.

    Args:
        config: widths, dropout and activation.

    >>> import torch
    >>> head = GlobalHead(HeadConfig(6, (5, 4))).eval()
    >>> head(nn.functional.normalize(torch.randn(2, 6), dim=-1)).norm(dim=-1).round(decimals=4)
    tensor([1., 1.], grad_fn=<RoundBackward1>)
    """

    center: Float[Tensor, "input_width"]

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("center", torch.zeros(config.input_width))
        layers: list[nn.Module] = []
        inputs = (config.input_width, *config.widths)
        for layer, width in enumerate(config.widths):
            layers.append(nn.Linear(inputs[layer], width))
            if layer < len(config.widths) - 1 or config.last_activation:
                layers.append(nn.LeakyReLU(config.negative_slope))
            if layer == 0:
                layers.append(nn.Dropout(config.dropout))
        self.layers = nn.Sequential(*layers)

    def forward(self, embedding: Float[Tensor, "batch input_width"]) -> Float[Tensor, "batch dim"]:
        """Maps unit-norm backbone embeddings to unit-norm shared ones."""
        projected = self.layers((embedding - self.center) * math.sqrt(self.config.input_width))
        return projected / (projected.norm(dim=-1, keepdim=True) + _EPSILON)
