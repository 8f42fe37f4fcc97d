"""How many candidates the stages of hierarchical inference need, chosen on validation items."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from modalloy.errors import ConfigError
from modalloy.evaluation.metrics import Metrics, direction_metrics
from modalloy.evaluation.ranks import Direction
from modalloy.evaluation.reranking import rerank_ranks
from modalloy.search.hierarchical import HierarchicalSearch, HierarchyConfig, Stage

_WEIGHTS = HierarchyConfig()
_MEASURES = ("R@1", "R@5", "R@10", "rsum")


@dataclass(frozen=True)
class DepthLadder:
    """Which numbers of candidates to try, and how much recall they may cost."""

    first: tuple[int, ...] = (10, 20, 50, 100, 200)
    """Candidates for the focal stage, ascending; the last is the deepest setting, which loses nothing by definition."""
    second: tuple[int, ...] = (10, 20, 50)
    """Candidates for the cross-layer stage, ascending; empty where there are no mid-level tokens."""
    loss: float = 0.2
    """Percentage points of recall that a choice may lose against the deepest setting."""
    measures: tuple[str, ...] = ("R@1", "R@10")
    """What mustn't lose more, each on its own: "R@1", "R@5", "R@10", or "rsum", their sum."""

    def __post_init__(self) -> None:
        for name in ("first", "second"):
            counts = getattr(self, name)
            if list(counts) != sorted(set(counts)) or min(counts, default=1) < 1:
                raise ConfigError(f"{name} must be ascending numbers from 1, got {list(counts)}.")
        if not self.first:
            raise ConfigError("first must be one number of candidates or more, got none.")
        if not 0 <= self.loss < 100:
            raise ConfigError(f"loss must be from 0 to 100 percentage points, got {self.loss}.")
        if not self.measures or not set(self.measures) <= set(_MEASURES):
            raise ConfigError(f"measures must be some of {list(_MEASURES)}, got {list(self.measures)}.")


@dataclass(frozen=True)
class Depth:
    """What a setting gives, stage by stage."""

    config: HierarchyConfig
    """The setting."""
    stages: dict[str, Metrics]
    """Recall after each stage; a truth that isn't among its candidates is a miss."""
    milliseconds: dict[str, float]
    """Time a query of each stage."""

    @property
    def final(self) -> Metrics:
        """Recall after the last stage."""
        return list(self.stages.values())[-1]

    @property
    def latency(self) -> float:
        """Milliseconds a query, all stages together."""
        return sum(self.milliseconds.values())

    def to_dict(self) -> dict[str, Any]:
        """The fields for JSON, and the latency."""
        return {
            "config": asdict(self.config),
            "stages": {name: _numbers(found) for name, found in self.stages.items()},
            "milliseconds": dict(self.milliseconds),
            "latency": self.latency,
        }


@dataclass(frozen=True)
class DepthChoice:
    """The least deep setting that loses little, and all that were measured for it."""

    direction: Direction
    """What the queries are."""
    chosen: Depth
    """The choice."""
    deepest: Depth
    """What it is compared with."""
    depths: tuple[Depth, ...]
    """All that were measured, in the order of their depths."""
    ladder: DepthLadder
    """What they were chosen from, and by what."""

    def to_dict(self) -> dict[str, Any]:
        """What `report.depths.depths_table` shows, ready for JSON."""
        return {
            "direction": self.direction,
            "loss": self.ladder.loss,
            "measures": list(self.ladder.measures),
            "chosen": self.depths.index(self.chosen),
            "deepest": self.depths.index(self.deepest),
            "depths": [depth.to_dict() for depth in self.depths],
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
    search: HierarchicalSearch,
    caption_image: Int[Tensor, "captions"],
    direction: Direction,
    config: HierarchyConfig,
) -> Depth:
    """Recall and time of one setting, with all items of one side as queries.

    Args:
        search: the items.
        caption_image: place of each caption's image.
        direction: what the queries are.
        config: the setting; `HierarchyConfig(first=None, second=len(items))` takes the whole score of all pairs.

    Raises:
        ConfigError, DataError: see `HierarchicalSearch`.
    """
    stages = search(direction, config)
    ranks = stage_ranks(stages, caption_image, len(search.images.vectors), direction)
    return Depth(
        config,
        {name: direction_metrics(found) for name, found in ranks.items()},
        {stage.name: 1000 * stage.seconds / len(stage.candidates) for stage in stages},
    )


def choose_depths(
    search: HierarchicalSearch,
    caption_image: Int[Tensor, "captions"],
    direction: Direction,
    ladder: DepthLadder = DepthLadder(),
    config: HierarchyConfig = _WEIGHTS,
) -> DepthChoice:
    """Takes the fewest first candidates, then the fewest second ones, that lose little against the deepest setting.

    With the most second candidates every number of first ones is measured; with the number chosen of these, every
    number of second ones.

    Args:
        search: validation items.
        caption_image: place of each caption's image.
        direction: what the queries are; the choice is for this direction alone.
        ladder: what to choose from.
        config: the weights; its numbers of candidates have no part.

    Raises:
        ConfigError: second candidates are wanted, but there are no mid-level tokens.

    >>> import torch
    >>> from modalloy.align import Tokens
    >>> from modalloy.search.hierarchical import Side
    >>> from modalloy.search.token_source import HeldTokens
    >>> tokens = HeldTokens({"high": Tokens(torch.eye(3)[:, None], torch.ones(3, 1, dtype=torch.bool))})
    >>> search = HierarchicalSearch(Side(torch.eye(3), tokens), Side(torch.eye(3), tokens))
    >>> choice = choose_depths(search, torch.arange(3), "text_to_image", DepthLadder(first=(1, 2), second=()))
    >>> choice.chosen.config.first, choice.chosen.final.recall_1
    (1, 100.0)
    """

    def measured(first: int, second: int | None) -> Depth:
        setting = replace(config, first=first, second=None if second is None else min(first, second))
        return measure_depth(search, caption_image, direction, setting)

    most = ladder.second[-1] if ladder.second else None
    by_first = [measured(first, most) for first in ladder.first]
    deepest = by_first[-1]
    chosen = next(depth for depth in by_first if _loses_little(depth, deepest, ladder))
    first, second = chosen.config.first, chosen.config.second
    assert first is not None
    fewer = [measured(first, count) for count in ladder.second if second is not None and count < second]
    final = next((depth for depth in fewer if _loses_little(depth, deepest, ladder)), chosen)
    at = by_first.index(chosen)
    return DepthChoice(direction, final, deepest, (*by_first[:at], *fewer, *by_first[at:]), ladder)


def _loses_little(depth: Depth, deepest: Depth, ladder: DepthLadder) -> bool:
    found, best = _numbers(depth.final), _numbers(deepest.final)
    # Recall is a share of whole queries in floating point.
    return all(best[measure] - found[measure] <= ladder.loss + 1e-9 for measure in ladder.measures)


def _numbers(found: Metrics) -> dict[str, Any]:
    return found.to_dict() | {"rsum": found.rsum}
