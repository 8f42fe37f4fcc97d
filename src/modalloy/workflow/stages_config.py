"""How deep the stages of HACAN's retrieval go."""

from dataclasses import dataclass, field, replace
from typing import Literal

from modalloy.align import LocalBranch
from modalloy.errors import ConfigError
from modalloy.search import DepthLadder, HierarchyConfig
from modalloy.search.depth import TIMED_QUERIES

CHOSEN: Literal["chosen"] = "chosen"
_ALL = "all"


@dataclass(frozen=True)
class StagesConfig:
    """How deep the stages of retrieval go, and what they are weighed by."""

    depth: HierarchyConfig | None = None
    """The candidates of each stage; None: chosen on validation, for each direction (see `choose_depths`)."""
    global_weight: float | Literal["chosen"] = HierarchyConfig.global_weight
    """What the vectors' similarity counts beside the local scores; or it is chosen on validation, too."""
    ladder: DepthLadder = field(default_factory=DepthLadder)
    """What the depth is chosen from, and by what; its candidates for the cross-layer stage have no part where there
    are no terms for that."""
    fold_size: int | None = None
    """Search each query among so many images and their captions, fold by fold, as COCO's 1K protocol does with 1,000;
    choices are made in such folds, too."""
    timed: int = TIMED_QUERIES
    """How many queries are timed one by one, at each depth."""

    def __post_init__(self) -> None:
        for name in ("fold_size", "timed"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ConfigError(f"{name} must be at least 1, got {count}.")
        if isinstance(self.global_weight, str):
            if self.global_weight != CHOSEN:
                raise ConfigError(f"global_weight must be a number or {CHOSEN!r}, got {self.global_weight!r}.")
        else:
            HierarchyConfig(global_weight=self.global_weight)

    @property
    def chooses(self) -> bool:
        """Whether anything is chosen on validation."""
        return self.depth is None or self.global_weight == CHOSEN


WEIGHED = StagesConfig(HierarchyConfig(), CHOSEN)
"""HACAN's candidates, and the vectors weighed on validation."""


def possible(config: StagesConfig, branch: LocalBranch) -> StagesConfig:
    """Settings that several encoders share, without a cross-layer stage where a branch has no terms for one.

    >>> from modalloy.align import LocalConfig
    >>> possible(WEIGHED, LocalBranch(LocalConfig(4, None, 4, None, dim=2))).depth.cross_candidates is None
    True
    """
    if config.depth is None or branch.config.crosses:
        return config
    return replace(config, depth=replace(config.depth, cross_candidates=None))


def stages_of(text: str) -> HierarchyConfig | None:
    """Reads numbers of candidates: "100:20" for the focal and the cross-layer stage, "100" for the focal stage alone.

    With "all:50" the focal stage gets all items, as in HACAN's code.

    Returns:
        None for "chosen": they are chosen on validation.

    Raises:
        ConfigError: the text is something else, or the numbers can't be.

    >>> stages_of("100").cross_candidates is None, stages_of("chosen")
    (True, None)
    """
    if text == CHOSEN:
        return None
    counts = text.split(":")
    all_first = counts[0] == _ALL
    if len(counts) > 2 or not all(each.isdecimal() for each in counts[all_first:]):
        raise ConfigError(f"stages are {CHOSEN!r} or numbers of candidates like 100:20, 100, or all:50; got {text!r}.")
    first = None if all_first else int(counts[0])
    return HierarchyConfig(first, int(counts[1]) if len(counts) == 2 else None)
