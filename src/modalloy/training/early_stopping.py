"""When a training stops before its last epoch, and which epoch is its best."""

import math
from dataclasses import dataclass
from typing import Literal

from modalloy.errors import ConfigError

Metrics = dict[str, float | int | None]


@dataclass(frozen=True)
class EarlyStopping:
    """When to stop before the last epoch; the weights of the best epoch are the result."""

    monitor: str
    """Name of the logged metric that decides."""
    patience: int
    """Epochs without a better value after which training stops."""
    mode: Literal["max", "min"] = "max"
    """Whether larger or smaller is better."""
    min_delta: float = 0.0
    """By how much a value must be better to count."""

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ConfigError(f"patience must be at least 1 epoch, got {self.patience}.")
        if self.mode not in ("max", "min"):
            raise ConfigError(f"mode must be 'max' or 'min', got {self.mode!r}.")

    def best(self, history: list[Metrics]) -> int:
        """Index of the best epoch in `history` (the first of equals)."""
        sign = 1 if self.mode == "max" else -1
        best, best_value = 0, -math.inf
        for index, row in enumerate(history):
            if self.monitor not in row:
                raise ConfigError(f"Early stopping watches {self.monitor!r}, which isn't among {sorted(row)}.")
            value = row[self.monitor]
            if value is not None and sign * value > best_value + self.min_delta:
                best, best_value = index, sign * value
        return best

    def over(self, history: list[Metrics]) -> bool:
        """Whether `patience` epochs have gone by without a better value."""
        return bool(history) and len(history) - 1 - self.best(history) >= self.patience
