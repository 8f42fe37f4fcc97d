"""How deep each stage of hierarchical inference goes."""

import math
from dataclasses import dataclass

from modalloy.errors import ConfigError


@dataclass(frozen=True)
class HierarchyConfig:
    """How many candidates each stage gets, and what its scores count.

    >>> HierarchyConfig(focal_candidates=50, cross_candidates=20).global_weight
    0.2
    """

    focal_candidates: int | None = 100
    """Candidates that vectors find for the focal stage; None: all items, the original's costly first stage."""
    cross_candidates: int | None = 20
    """Candidates that the focal stage leaves for the cross-layer stage; None: there is no such stage."""
    global_weight: float = 0.2
    """Weight of the vectors' inner product."""
    focal_weight: float = 0.8
    """Weight of the focal score."""
    cross_weight: float = 1.0
    """Weight of the cross-layer terms, which the last stage adds."""

    def __post_init__(self) -> None:
        for name in ("focal_candidates", "cross_candidates"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ConfigError(f"{name} must be at least 1, or None, got {count}.")
        focal, cross = self.focal_candidates, self.cross_candidates
        if focal is not None and cross is not None and cross > focal:
            raise ConfigError(f"cross_candidates must be at most focal_candidates, {focal}, got {cross}.")
        if not 0 <= self.global_weight < math.inf:
            raise ConfigError(f"global_weight must be 0 or more, got {self.global_weight}.")
        for name in ("focal_weight", "cross_weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}.")
