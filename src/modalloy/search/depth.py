"""What a depth of hierarchical inference gives: recall after each stage, and how long a query takes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.metrics import Metrics, direction_metrics
from modalloy.evaluation.ranks import Direction
from modalloy.evaluation.reranking import rerank_ranks
from modalloy.search.hierarchical import HierarchicalSearch, Stage
from modalloy.search.hierarchy_config import HierarchyConfig

TIMED_QUERIES = 24


@dataclass(frozen=True)
class Fold:
    """Items that are searched on their own: those of a split, or of one of the folds of COCO's 1K protocol."""

    search: HierarchicalSearch
    """The items."""
    caption_image: Int[Tensor, "captions"]
    """Place of each caption's image."""


@dataclass(frozen=True, eq=False)
class Depth:
    """What a setting gives, stage by stage."""

    config: HierarchyConfig
    """The setting."""
    ranks: dict[str, Float[Tensor, "queries"]]
    """Ranks after each stage, fold by fold; a truth that isn't among its candidates is a miss."""
    milliseconds: dict[str, float]
    """How long each stage of a query on its own takes, the median of some."""
    batched: dict[str, float]
    """How long it takes per query, of as many together as `HierarchicalSearch` answers."""

    @cached_property
    def stages(self) -> dict[str, Metrics]:
        """Recall after each stage."""
        return {name: direction_metrics(ranks) for name, ranks in self.ranks.items()}

    @property
    def final(self) -> Metrics:
        """Recall after the last stage."""
        return list(self.stages.values())[-1]

    @property
    def latency(self) -> float:
        """Milliseconds of a query on its own, all stages together."""
        return sum(self.milliseconds.values())

    def to_dict(self) -> dict[str, Any]:
        """The recalls and times for JSON."""
        return {
            "config": asdict(self.config),
            "stages": {name: found.to_dict() | {"rsum": found.rsum} for name, found in self.stages.items()},
            "milliseconds": dict(self.milliseconds),
            "latency": self.latency,
            "batched": dict(self.batched),
        }


def stage_ranks(
    stages: Sequence[Stage], caption_image: Int[Tensor, "captions"], n_images: int, direction: Direction
) -> dict[str, Float[Tensor, "queries"]]:
    """Ranks of the truth after each stage by `rerank_ranks`: infinite where it isn't among the stage's candidates.

    Raises:
        DataError: the candidates aren't those of all images, or all captions.
    """
    return {
        stage.name: rerank_ranks(stage.candidates, stage.scores, caption_image, n_images, direction) for stage in stages
    }


def measure_depth(
    folds: Sequence[Fold], direction: Direction, config: HierarchyConfig, timed: int = TIMED_QUERIES
) -> Depth:
    """Recall and time of one setting, with all items of one side as queries.

    Args:
        folds: the items; recall is of the queries of all folds, each among the items of its own.
        direction: what the queries are.
        config: the setting; `HierarchyConfig(focal_candidates=None, cross_candidates=len(items))` takes the whole score
            of all pairs.
        timed: how many queries, spread over the first fold, are timed one by one, once more.

    Raises:
        ConfigError: `timed` is below 1; see also `HierarchicalSearch`.
        DataError: there is no fold; see also `HierarchicalSearch`.
    """
    if timed < 1:
        raise ConfigError(f"timed must be at least 1 query, got {timed}.")
    if not folds:
        raise DataError("a depth is measured on one fold or more, got none.")
    found, ranks = [], []
    for fold in folds:
        found.append(fold.search(direction, config))
        ranks.append(stage_ranks(found[-1], fold.caption_image, len(fold.search.image_vectors), direction))
    together = list(zip(*found, strict=True))
    return Depth(
        config,
        {name: torch.cat([each[name] for each in ranks]) for name in ranks[0]},
        _milliseconds_alone(folds[0].search, direction, config, len(found[0][0].candidates), timed),
        {
            stages[0].name: 1000 * sum(each.seconds for each in stages) / sum(len(each.candidates) for each in stages)
            for stages in together
        },
    )


def _milliseconds_alone(
    search: HierarchicalSearch, direction: Direction, config: HierarchyConfig, queries: int, timed: int
) -> dict[str, float]:
    places = torch.arange(0, queries, max(1, queries // timed))[:timed]
    runs = [search(direction, config, place) for place in places.split(1)]
    return {stages[0].name: 1000 * median(each.seconds for each in stages) for stages in zip(*runs, strict=True)}
