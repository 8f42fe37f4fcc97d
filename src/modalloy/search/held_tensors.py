"""Tensors kept in memory by a key, as many as fit."""

from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor

HELD_BYTES = 256 << 20


class HeldTensors:
    """Keeps what was used last; for one thread at a time.

    Args:
        held_bytes: how much at most.

    >>> import torch
    >>> held = HeldTensors(held_bytes=8)
    >>> held["a"] = torch.zeros(1)
    >>> held["b"] = held["c"] = torch.zeros(1)
    >>> held.get("a") is None, held.get("c") is None
    (True, False)
    """

    def __init__(self, held_bytes: int = HELD_BYTES) -> None:
        self._room, self._held = held_bytes, OrderedDict[Hashable, Tensor]()

    def get(self, key: Hashable) -> Tensor | None:
        """What is kept under a key, if it still is."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def __setitem__(self, key: Hashable, value: Tensor) -> None:
        """Keeps a tensor, instead of those that weren't used for the longest time; one that never fits isn't kept."""
        if (old := self._held.pop(key, None)) is not None:
            self._room += old.nbytes
        self._held[key] = value
        self._room -= value.nbytes
        while self._room < 0:
            self._room += self._held.popitem(last=False)[1].nbytes
