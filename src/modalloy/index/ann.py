"""How an index is searched approximately where it lies: HNSW over vectors of eight bits, refined by the whole ones.

`benchmarks/search.py` measures what is set here.
"""

from dataclasses import dataclass

from modalloy.errors import ConfigError

EXACT_UP_TO = 20_000
"""So many pictures, or captions, are compared one by one, which takes milliseconds and misses none."""


@dataclass(frozen=True)
class ApproximateConfig:
    """How the approximate search is built and asked."""

    partition_rows: int = 1_000_000
    """Vectors in one graph; several graphs are built where there are more, and all of them are searched."""
    ef: int = 200
    """Candidates that a search of a graph keeps; at least one and a half times as many as are compared afterwards.

    Pictures asking for captions need so many: 50 find 0.90 of the ten best among 32,000, 100 0.96, 200 0.99."""
    refine: int = 2
    """How many times as many as are to be found are compared by their whole vectors."""

    def __post_init__(self) -> None:
        for name in ("partition_rows", "ef", "refine"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def partitions(self, rows: int) -> int:
        """How many graphs so many vectors are divided into.

        >>> ApproximateConfig(partition_rows=1000).partitions(2500)
        3
        """
        return max(1, -(-rows // self.partition_rows))

    def candidates(self, k: int) -> int:
        """How many candidates a search for `k` answers keeps; LanceDB refuses fewer than are compared afterwards.

        >>> [ApproximateConfig(ef=50, refine=2).candidates(k) for k in (10, 200)]
        [50, 600]
        """
        return max(self.ef, 3 * k * self.refine // 2)
