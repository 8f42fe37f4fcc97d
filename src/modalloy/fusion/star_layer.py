"""The seam of the graph layers: what all of them are given, check and return."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from modalloy.errors import ConfigError, DataError


class StarLayer(nn.Module, ABC):
    """A layer on the star graph: every token of every encoder sends to every encoder's CLS token.

    The CLS tokens send as well, each to itself too; they alone receive, so that only they are computed.
    """

    lin_edge: nn.Linear | None
    """What an edge's number is multiplied by; None for a layer whose edges carry none."""

    @overload
    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "batch tokens"],
        targets: Sequence[int],
        return_attention: Literal[False] = False,
        edges: Float[Tensor, "batch encoders tokens"] | None = None,
        present: Bool[Tensor, "batch encoders"] | None = None,
    ) -> Float[Tensor, "batch encoders width"]: ...

    @overload
    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "batch tokens"],
        targets: Sequence[int],
        return_attention: Literal[True],
        edges: Float[Tensor, "batch encoders tokens"] | None = None,
        present: Bool[Tensor, "batch encoders"] | None = None,
    ) -> tuple[Float[Tensor, "batch encoders width"], Float[Tensor, "batch encoders heads tokens"]]: ...

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "batch tokens"],
        targets: Sequence[int],
        return_attention: bool = False,
        edges: Float[Tensor, "batch encoders tokens"] | None = None,
        present: Bool[Tensor, "batch encoders"] | None = None,
    ) -> (
        Float[Tensor, "batch encoders width"]
        | tuple[Float[Tensor, "batch encoders width"], Float[Tensor, "batch encoders heads tokens"]]
    ):
        """Update the CLS token of every encoder from all tokens of all encoders.

        Args:
            tokens: every encoder's tokens one after the other, each encoder padded to one length.
            mask: True where a token is real, False where it is padding (any finite numbers).
            targets: position of each encoder's CLS token along the tokens axis.
            return_attention: also return the attention weights (before dropout; they sum to one over tokens).
            edges: the number that the edge from a token to an encoder's CLS token carries.
            present: False where an item lacks an encoder, whose CLS token may then be masked out; what is returned
                in its place is finite but means nothing. Every item has one encoder at least.

        Returns:
            The updated CLS tokens, in the dtype of `tokens` (of autocast where enabled); and the attention weights
            if asked for.

        Raises:
            DataError: a target isn't a position along the tokens axis, or is masked out in some item.
            ConfigError: `edges` were given to a layer without edge attributes, or not to one with them.
        """
        _check_targets(mask, targets, present)
        if (edges is None) != (self.lin_edge is None):
            name = type(self).__name__
            raise ConfigError(f"{name} takes edges if, and only if, it was made with edge_attributes=True")
        device = tokens.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype
        with torch.autocast(device, enabled=False):
            updated, attention = self._update(tokens.to(dtype), mask, targets, edges)
        return (updated, attention) if return_attention else updated

    @abstractmethod
    def _update(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "batch tokens"],
        targets: Sequence[int],
        edges: Float[Tensor, "batch encoders tokens"] | None,
    ) -> tuple[Float[Tensor, "batch encoders width"], Float[Tensor, "batch encoders heads tokens"]]:
        """The updated CLS tokens and the attention, of arguments that have been checked."""


def check_sizes(layer: StarLayer, dropout: float, **sizes: int) -> None:
    """Refuses a layer of impossible sizes.

    Raises:
        ConfigError: a size isn't positive, or the dropout isn't in [0, 1).
    """
    kind = type(layer).__name__
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} of {kind} must be at least 1, got {size}")
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout of {kind} must be in [0, 1), got {dropout}")


def attention_over(
    logits: Float[Tensor, "batch encoders heads tokens"], mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch encoders heads tokens"]:
    """Softmax over the real tokens."""
    return logits.masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=-1)


def weighted_values(
    weights: Float[Tensor, "batch encoders heads tokens"],
    tokens: Float[Tensor, "batch tokens dim"],
    projection: Float[Tensor, "heads head_dim dim"],
) -> Float[Tensor, "batch encoders heads head_dim"]:
    """sum_x alpha_x W x in each head, as W (sum_x alpha_x x), which is exact and spares W x for every token."""
    aggregated = (weights.flatten(1, 2).to(tokens.dtype) @ tokens).unflatten(1, weights.shape[1:3])
    return torch.einsum("behi,hoi->beho", aggregated, projection)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype for scores and softmax: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _check_targets(
    mask: Bool[Tensor, "batch tokens"], targets: Sequence[int], present: Bool[Tensor, "batch encoders"] | None
) -> None:
    length = mask.shape[1]
    outside = [target for target in targets if not 0 <= target < length]
    if outside or not targets:
        raise DataError(
            f"targets must be one or more positions of CLS tokens from 0 to {length - 1}, got {list(targets)}"
        )
    missing = ~mask[:, list(targets)]
    hidden = (missing if present is None else missing & present).nonzero()
    if len(hidden):
        item, encoder = hidden[0].tolist()
        raise DataError(
            f"item {item}: the CLS token of encoder {encoder} (position {targets[encoder]}) is masked out; "
            "every encoder's CLS token must be present, so set its mask to True"
        )
