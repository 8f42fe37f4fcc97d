"""HACAN's global heads: from a frozen backbone's embedding into the space that images and texts share."""

import math
from dataclasses import dataclass
from typing import Literal

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
    """Length of what the head reads of the backbone."""
    widths: tuple[int, ...]
    """Output width of each linear layer; the last is the length of the shared embedding."""
    dropout: float = 0.2
    """Probability that an output of the first layer is dropped in training."""
    negative_slope: float = 0.01
    """Slope of the LeakyReLU for negative inputs."""
    last_activation: bool = True
    """Whether a LeakyReLU also follows the last layer, as in HACAN."""
    input: Literal["embedding", "summary"] = "embedding"
    """What the head reads: the backbone's unit-norm embedding, or its summary token as it is, as in HACAN's code."""

    pooler: bool = False
    """Whether a square linear layer with tanh comes first: BERT's pooler, where the summary token is the raw CLS."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.input_width, *self.widths) < 1:
            raise ConfigError(
                f"A head needs at least one layer, and widths of at least 1; got {self.input_width} -> {self.widths}."
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {self.dropout}.")
        if self.input not in ("embedding", "summary"):
            raise ConfigError(f"input must be 'embedding' or 'summary', got {self.input!r}.")

    @property
    def dim(self) -> int:
        """Length of the shared embedding."""
        return self.widths[-1]


class GlobalHead(nn.Module):
    """HACAN's global head: linear layers with LeakyReLU, dropout after the first, then x / (||x|| + 1e-8).

    The input is the backbone's unit-norm embedding; the head multiplies it by the square root of its length,
    so that its components have the scale of a LayerNorm's output, which is what HACAN's heads read. With
    `input="summary"` it is the summary token, and nothing is multiplied. `center` is taken off first; it is zero,
    as in HACAN, until it is set.

    Args:
        config: what it reads, widths, dropout and activation.

    >>> import torch
    >>> head = GlobalHead(HeadConfig(6, (5, 4))).eval()
    >>> head(nn.functional.normalize(torch.randn(2, 6), dim=-1)).norm(dim=-1).round(decimals=4)
    tensor([1., 1.], grad_fn=<RoundBackward1>)
    """

    center: Float[Tensor, "input_width"]

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self._scale = math.sqrt(config.input_width) if config.input == "embedding" else 1.0
        self.register_buffer("center", torch.zeros(config.input_width))
        square = (config.input_width, config.input_width)
        self.pooler = nn.Sequential(nn.Linear(*square), nn.Tanh()) if config.pooler else nn.Identity()
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
        """Maps unit-norm backbone embeddings, or summary tokens, to unit-norm shared embeddings."""
        projected = self.layers(self.pooler((embedding - self.center) * self._scale))
        # Of autocast's layers: in bfloat16 the norm, and similarities near 1, would be a 256th off.
        projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
        return projected / (projected.norm(dim=-1, keepdim=True) + _EPSILON)
