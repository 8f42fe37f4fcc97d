"""Several systems, each with one run or one a seed, compared on the same queries."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from jaxtyping import Int
from torch import Tensor

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.bootstrap import Difference, Interval, interval, resample
from modalloy.evaluation.metrics import Metrics, RetrievalMetrics, metrics
from modalloy.evaluation.oracle import headroom_taken, oracle
from modalloy.evaluation.ranks import Ranks


@dataclass(frozen=True)
class SystemSummary:
    """One row of the results table."""

    metrics: RetrievalMetrics
    """Metrics, each averaged over the seeds."""
    rsum: Interval
    """Mean RSum with its bootstrap interval."""
    seeds: int
    """Number of runs."""
    spread: float | None
    """Standard deviation of RSum over the seeds; None for a single run."""
    headroom: float | None
    """Share of the oracle's headroom taken; None for an input, or without headroom."""

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics' dictionary with `low`, `high`, `seeds`, `spread` and `headroom` of RSum."""
        return {
            **self.metrics.to_dict(),
            "low": self.rsum.low,
            "high": self.rsum.high,
            "seeds": self.seeds,
            "spread": self.spread,
            "headroom": self.headroom,
        }


@dataclass(frozen=True)
class PairedDifference:
    """Difference of RSum between two named systems."""

    a: str
    """The reference."""
    b: str
    """What it is compared with."""
    rsum: Difference
    """RSum of a minus RSum of b, paired and clustered by image."""

    def to_dict(self) -> dict[str, str | float]:
        """Return `{"a", "b", "rsum", "low", "high"}`."""
        return {
            "a": self.a,
            "b": self.b,
            "rsum": self.rsum.value,
            "low": self.rsum.low,
            "high": self.rsum.high,
        }


@dataclass(frozen=True)
class Comparison:
    """All that a results table shows."""

    systems: dict[str, SystemSummary]
    """Summaries by name, in the order given."""
    differences: list[PairedDifference]
    """Each reference against every other system, a pair of references once."""
    inputs: tuple[str, ...]
    """Names of the input models, whose oracle is the bound."""
    best_input: str | None
    """The input with the highest mean RSum."""
    oracle: RetrievalMetrics | None
    """Share of the queries that at least one input answers; None without inputs."""
    level: float
    """Share of the resamples that the intervals cover."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "systems": {name: summary.to_dict() for name, summary in self.systems.items()},
            "differences": [difference.to_dict() for difference in self.differences],
            "inputs": list(self.inputs),
            "best_input": self.best_input,
            "oracle": self.oracle.to_dict() if self.oracle else None,
            "level": self.level,
        }


def compare(
    systems: Mapping[str, Sequence[Ranks]],
    caption_image: Int[Tensor, "captions"],
    reference: str | Sequence[str] = (),
    inputs: Sequence[str] = (),
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Compare systems on the same queries: means, spreads, intervals, differences, oracle and headroom.

    Args:
        systems: ranks of each system by name, one or one a seed.
        caption_image: row of each caption's image.
        reference: the system or systems to compare with every other.
        inputs: names of the input models; a seed's oracle takes the inputs' runs of that seed, and an input
            with a single run serves every seed.
        samples: number of bootstrap resamples.
        seed: seed of the resamples.
        level: share of the resamples that an interval covers.

    Raises:
        ConfigError: an unknown name, or a bootstrap option out of range.
        DataError: ranks that don't fit each other or `caption_image`, or inputs with different numbers of
            seeds.

    >>> import torch
    >>> good, bad = (Ranks(torch.full((5,), rank), torch.ones(5)) for rank in (1.0, 9.0))
    >>> table = compare({"good": [good], "bad": [bad]}, torch.arange(5), reference="good", samples=20)
    >>> table.to_dict()["differences"]
    [{'a': 'good', 'b': 'bad', 'rsum': 200.0, 'low': 200.0, 'high': 200.0}]
    """
    references = (reference,) if isinstance(reference, str) else tuple(reference)
    _check_names(systems, [*references, *inputs])
    names = list(systems)
    values, resampled = resample([systems[name] for name in names], caption_image, "rsum", samples, seed)
    means = {name: _mean([metrics(ranks) for ranks in systems[name]]) for name in names}
    bound = _seeds_oracle([systems[name] for name in inputs]) if inputs else None
    best_input = max(inputs, key=lambda name: means[name].rsum) if inputs else None

    def summary(name: str) -> SystemSummary:
        column = names.index(name)
        headroom = None
        if bound is not None and best_input is not None and name not in inputs:
            headroom = headroom_taken(means[best_input].rsum, bound.rsum, means[name].rsum)
        return SystemSummary(
            means[name],
            Interval(*interval(values[column], resampled[:, column], level)),
            len(systems[name]),
            stdev(metrics(ranks).rsum for ranks in systems[name]) if len(systems[name]) > 1 else None,
            headroom,
        )

    def difference(a: str, b: str) -> PairedDifference:
        first, second = names.index(a), names.index(b)
        resampled_difference = resampled[:, first] - resampled[:, second]
        bounds = interval(values[first] - values[second], resampled_difference, level)
        return PairedDifference(a, b, Difference(*bounds))

    return Comparison(
        {name: summary(name) for name in names},
        [
            difference(a, b)
            for position, a in enumerate(references)
            for b in names
            if b != a and b not in references[:position]
        ],
        tuple(inputs),
        best_input,
        bound,
        level,
    )


def _check_names(systems: Mapping[str, Sequence[Ranks]], asked: Sequence[str]) -> None:
    if not systems:
        raise DataError("a comparison needs at least one system, got none")
    for name in asked:
        if name not in systems:
            raise ConfigError(f"no system is called {name!r}; the systems are {', '.join(systems)}")


def _seeds_oracle(inputs: Sequence[Sequence[Ranks]]) -> RetrievalMetrics:
    """Oracle over the inputs' runs of each seed, averaged over the seeds."""
    seeds = max(len(runs) for runs in inputs)
    if any(len(runs) not in (1, seeds) for runs in inputs):
        raise DataError(
            "inputs must have one run each or one for each seed to form an oracle, got "
            f"{[len(runs) for runs in inputs]} runs"
        )
    return _mean([oracle([runs[seed % len(runs)] for runs in inputs]) for seed in range(seeds)])


def _mean(runs: Sequence[RetrievalMetrics]) -> RetrievalMetrics:
    """Average each number over runs on the same queries."""

    def direction(get: Callable[[RetrievalMetrics], Metrics]) -> Metrics:
        rows = [dataclasses.asdict(get(run)) for run in runs]
        counts = ("queries", "not_queries")
        means: dict[str, Any] = {name: fmean(row[name] for row in rows) for name in rows[0] if name not in counts}
        return dataclasses.replace(get(runs[0]), **means)

    return RetrievalMetrics(direction(lambda run: run.image_to_text), direction(lambda run: run.text_to_image))
