"""How many candidates the stages of hierarchical inference need, chosen on validation items."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from modalloy.errors import ConfigError
from modalloy.evaluation.ranks import DIRECTIONS, Direction
from modalloy.search.depth import TIMED_QUERIES, Depth, Fold, measure_depth
from modalloy.search.hierarchy_config import HierarchyConfig

_WEIGHTS = HierarchyConfig()
_MEASURES = {"R@1": "recall_1", "R@5": "recall_5", "R@10": "recall_10", "rsum": "rsum"}
_LOSS = 0.2
# Recall is a share of whole queries in floating point.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class DepthLadder:
    """Which numbers of candidates to try, and what recall they must keep or reach."""

    focal_candidates: tuple[int, ...] = (10, 20, 50, 100, 200)
    """Candidates for the focal stage, ascending; with the most of both stages nothing is lost by definition."""
    cross_candidates: tuple[int, ...] = (10, 20, 50)
    """Candidates for the cross-layer stage, ascending; empty for no such stage."""
    loss: float | None = None
    """Percentage points of recall that a choice may lose against the most candidates; 0.2 unless `recall` is given."""
    recall: float | tuple[float, float] | None = None
    """Recall, in percent, that a choice must reach instead; two for image to text and for text to image."""
    measures: tuple[str, ...] = ("R@1", "R@10")
    """Which recall, each on its own: "R@1", "R@5", "R@10", or "rsum", their sum."""

    def __post_init__(self) -> None:
        for name in ("focal_candidates", "cross_candidates"):
            counts = getattr(self, name)
            if list(counts) != sorted(set(counts)) or min(counts, default=1) < 1:
                raise ConfigError(f"{name} must be ascending numbers from 1, got {list(counts)}.")
        if not self.focal_candidates:
            raise ConfigError("focal_candidates must be one number of candidates or more, got none.")
        if self.loss is not None and self.recall is not None:
            raise ConfigError("give one of loss and recall: what may be lost, or what must be reached.")
        if self.loss is not None and not 0 <= self.loss < 100:
            raise ConfigError(f"loss must be from 0 to 100 percentage points, got {self.loss}.")
        if not self.measures or not set(self.measures) <= set(_MEASURES):
            raise ConfigError(f"measures must be some of {list(_MEASURES)}, got {list(self.measures)}.")
        most = 300 if set(self.measures) == {"rsum"} else 100
        if self.recall is not None and not all(0 < each <= most for each in self._recalls()):
            raise ConfigError(f"recall must be above 0 and at most {most} percent, got {self.recall}.")

    def wanted(self, direction: Direction) -> float | None:
        """What recall a choice for this direction must reach; None where it is compared with the deepest."""
        return None if self.recall is None else self._recalls()[DIRECTIONS.index(direction)]

    @property
    def allowed(self) -> float | None:
        """What a choice may lose against the deepest; None where it must reach a recall."""
        return _LOSS if self.loss is None and self.recall is None else self.loss

    def _recalls(self) -> tuple[float, float]:
        assert self.recall is not None
        return self.recall if isinstance(self.recall, tuple) else (self.recall, self.recall)


@dataclass(frozen=True)
class DepthChoice:
    """The least deep setting that gives the recall that is wanted, and all that were measured for it."""

    direction: Direction
    """What the queries are."""
    chosen: Depth
    """The choice."""
    deepest: Depth
    """With the most candidates of both stages."""
    depths: tuple[Depth, ...]
    """All that were measured, in the order of their depths."""
    ladder: DepthLadder
    """What they were chosen from, and by what."""
    reached: bool = True
    """False where no setting reaches the recall that the ladder wants, so that the choice is the deepest."""

    def to_dict(self) -> dict[str, Any]:
        """What `report.depths.depths_table` shows, ready for JSON."""
        return {
            "direction": self.direction,
            "loss": self.ladder.allowed,
            "recall": self.ladder.wanted(self.direction),
            "reached": self.reached,
            "measures": list(self.ladder.measures),
            "chosen": self.depths.index(self.chosen),
            "deepest": self.depths.index(self.deepest),
            "depths": [depth.to_dict() for depth in self.depths],
        }


def choose_depths(
    folds: Sequence[Fold],
    direction: Direction,
    ladder: DepthLadder = DepthLadder(),
    config: HierarchyConfig = _WEIGHTS,
    timed: int = TIMED_QUERIES,
) -> DepthChoice:
    """Takes the fewest candidates for the focal stage, then for the last, that lose little, or reach a wanted recall.

    With the most candidates for the last stage every number for the focal one is measured; with the number chosen of
    these, every number for the last. Where none reaches the wanted recall, the choice is the deepest, and says so.

    Args:
        folds: validation items.
        direction: what the queries are; the choice is for this direction alone.
        ladder: what to choose from, and by what.
        config: the weights; its numbers of candidates have no part.
        timed: see `measure_depth`.

    Raises:
        ConfigError: a cross-layer stage is wanted, but there are no mid-level tokens.

    >>> import torch
    >>> from modalloy.align import LocalConfig, Tokens
    >>> from modalloy.search import HeldTokens, HierarchicalSearch, Member, Side
    >>> tokens = HeldTokens({"high": Tokens(torch.eye(3)[:, None], torch.ones(3, 1, dtype=torch.bool))})
    >>> side = Side(torch.eye(3), tokens)
    >>> search = HierarchicalSearch(Member(side, side, LocalConfig(3, None, 3, None, dim=3)))
    >>> ladder = DepthLadder(focal_candidates=(1, 2), cross_candidates=())
    >>> choice = choose_depths([Fold(search, torch.arange(3))], "text_to_image", ladder)
    >>> choice.chosen.config.focal_candidates, choice.chosen.final.recall_1
    (1, 100.0)
    """

    def measured(focal: int, cross: int | None) -> Depth:
        setting = replace(config, focal_candidates=focal, cross_candidates=None if cross is None else min(focal, cross))
        return measure_depth(folds, direction, setting, timed)

    most = ladder.cross_candidates[-1] if ladder.cross_candidates else None
    by_focal = [measured(focal, most) for focal in ladder.focal_candidates]
    deepest = by_focal[-1]
    bars = _bars(ladder, direction, deepest)
    chosen = next((depth for depth in by_focal if _reaches(depth, bars)), None)
    if chosen is None:
        return DepthChoice(direction, deepest, deepest, tuple(by_focal), ladder, reached=False)
    focal, cross = chosen.config.focal_candidates, chosen.config.cross_candidates
    assert focal is not None
    fewer = [measured(focal, count) for count in ladder.cross_candidates if cross is not None and count < cross]
    final = next((depth for depth in fewer if _reaches(depth, bars)), chosen)
    at = by_focal.index(chosen)
    return DepthChoice(direction, final, deepest, (*by_focal[:at], *fewer, *by_focal[at:]), ladder)


def _bars(ladder: DepthLadder, direction: Direction, deepest: Depth) -> dict[str, float]:
    """The least that each measure must be."""
    wanted, allowed = ladder.wanted(direction), ladder.allowed
    if wanted is not None:
        return dict.fromkeys(ladder.measures, wanted)
    assert allowed is not None
    return {measure: _recall(deepest, measure) - allowed for measure in ladder.measures}


def _reaches(depth: Depth, bars: dict[str, float]) -> bool:
    return all(bar - _recall(depth, measure) <= _ROUNDING for measure, bar in bars.items())


def _recall(depth: Depth, measure: str) -> float:
    return float(getattr(depth.final, _MEASURES[measure]))
