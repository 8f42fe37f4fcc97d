"""What HACAN's stages give on a split: vectors alone, re-ranked by the focal score, and by the cross-layer score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modalloy.data.splits import validation_split
from modalloy.encoders import Encoder
from modalloy.errors import ConfigError
from modalloy.evaluation import EmbeddingScores, Ranks, compare, rank_queries
from modalloy.evaluation.folds import joined_ranks
from modalloy.evaluation.ranks import DIRECTIONS, Direction
from modalloy.search import DepthLadder, Fold, HierarchyConfig, choose_depths
from modalloy.search.depth import Depth, measure_depth
from modalloy.search.depths import DepthChoice
from modalloy.search.global_weight import choose_global_weight
from modalloy.workflow.evaluate import names_of, with_counts
from modalloy.workflow.features import Collection
from modalloy.workflow.local_features import LocalFeatures
from modalloy.workflow.stages_config import StagesConfig

AVERAGE = "average"
_DEFAULT = StagesConfig()


@dataclass(frozen=True)
class StagesFound:
    """What the stages give for a split, by one encoder or the average of several."""

    ranks: dict[str, Ranks]
    """After each stage."""
    depths: dict[Direction, Depth]
    """Recall and times of each direction."""
    choices: dict[Direction, DepthChoice]
    """What was measured for the choice of each depth; empty where none was chosen."""
    global_weight: float
    """What the vectors' similarity counted."""


def evaluate_stages(
    encoders: Sequence[Encoder], collection: Collection, split: str = "test", config: StagesConfig = _DEFAULT
) -> dict[str, Any]:
    """Ranks a split stage by stage, a truth that fell out of a stage's candidates being a miss.

    Args:
        encoders: aligned encoders with local branches; of several each alone, and the average of all.
        collection: features that aren't stored yet are extracted; choices are made on its split "tune", or "val".
        split: the split to evaluate on.
        config: see `StagesConfig`.

    Returns:
        The items counted, each stage's metrics and the differences of the last one's (of the average, if there is one)
        from the others with their intervals, milliseconds of a query on its own and in batches, the weights, and what
        each depth gave where the depth was chosen; ready for JSON.

    Raises:
        ConfigError: an encoder has no local branch, is given twice or is called "average", a stage needs a level of
            tokens that an encoder doesn't read, or something would be chosen on the split itself.
        DataError: there is no such split, or it has no usable items, or they don't make whole folds.
    """
    line_ups = _line_ups(encoders)
    features = _features(encoders, collection, split, config)
    counts = features.counts(split) | ({} if config.fold_size is None else {"fold_size": config.fold_size})
    found = {name: _found(features, split, config, which) for name, which in line_ups.items()}
    systems = {_label(name, stage): [ranks] for name, each in found.items() for stage, ranks in each.ranks.items()}
    comparison = compare(systems, features.paired.split(split).caption_image, reference=list(systems)[-1])
    choose_on = validation_split(collection.manifest.counts())
    told = {
        "global_weight": {name or encoders[0].name: each.global_weight for name, each in found.items()},
        "depths": {
            _label(name, direction): {"split": choose_on, "system": name, **choice.to_dict()}
            for name, each in found.items()
            for direction, choice in each.choices.items()
        },
    }
    return with_counts(split, counts, comparison.to_dict() | _times(found) | told)


def rank_stages(
    encoders: Sequence[Encoder], collection: Collection, split: str = "test", config: StagesConfig = _DEFAULT
) -> StagesFound:
    """What `evaluate_stages` measures, of the average of the encoders alone.

    Raises:
        ConfigError, DataError: see `evaluate_stages`.
    """
    return _found(_features(encoders, collection, split, config), split, config, range(len(encoders)))


def _features(encoders: Sequence[Encoder], collection: Collection, split: str, config: StagesConfig) -> LocalFeatures:
    if config.chooses and validation_split(collection.manifest.counts()) == split:
        raise ConfigError(
            f"{'the candidates' if config.depth is None else 'the weight'} would be chosen on {split!r}, the split to "
            "evaluate on; give numbers, such as 100:20 candidates and a weight of 0.2."
        )
    collection.manifest.split(split)  # a misspelt one is found before the work
    return LocalFeatures(encoders, collection)


def _found(features: LocalFeatures, split: str, config: StagesConfig, which: Sequence[int]) -> StagesFound:
    folds, choices = features.folds(split, config.fold_size, which), dict[Direction, DepthChoice]()
    depth, validation = config.depth or HierarchyConfig(), list[Fold]()
    if config.chooses:
        choose_on = validation_split(features.paired.manifest.counts())
        validation = features.folds(choose_on, config.fold_size, which)
    ladder = _ladder(folds, config.ladder)
    if config.depth is None:
        most = ladder.cross_candidates[-1] if ladder.cross_candidates else None
        depth = HierarchyConfig(ladder.focal_candidates[-1], most)
    weight = config.global_weight
    depth = replace(
        depth, global_weight=choose_global_weight(validation, depth)[0] if isinstance(weight, str) else weight
    )
    if config.depth is None:
        choices = {each: choose_depths(validation, each, ladder, depth, config.timed) for each in DIRECTIONS}
    found = {
        each: measure_depth(folds, each, choices[each].chosen.config if choices else depth, config.timed)
        for each in DIRECTIONS
    }
    return StagesFound(_ranks(folds, found), found, choices, depth.global_weight)


def _ladder(folds: Sequence[Fold], ladder: DepthLadder) -> DepthLadder:
    """The ladder, without a cross-layer stage where there are no terms for one."""
    if all(member.local.crosses for member in folds[0].search.members):
        return ladder
    return replace(ladder, cross_candidates=())


def _times(found: Mapping[str, StagesFound]) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds of each stage of each system, by direction: of a query on its own, and in batches."""
    return {
        kind: {
            direction: {
                _label(name, stage): time
                for name, each in found.items()
                for stage, time in getattr(each.depths[direction], kind).items()
            }
            for direction in DIRECTIONS
        }
        for kind in ("milliseconds", "batched")
    }


def _line_ups(encoders: Sequence[Encoder]) -> dict[str, list[int]]:
    """Which encoders search together, by the name of that; one alone has none."""
    if len(encoders) == 1:
        return {"": [0]}
    names = names_of(encoders)
    if AVERAGE in names:
        raise ConfigError(f"no encoder may be called {AVERAGE!r}, which is the name of all together; rename it.")
    return {name: [place] for place, name in enumerate(names)} | {AVERAGE: list(range(len(names)))}


def _label(name: str, of: str) -> str:
    return f"{name}, {of}" if name else of


def _ranks(folds: Sequence[Fold], found: dict[Direction, Depth]) -> dict[str, Ranks]:
    ranks = {
        stage: Ranks(**{direction: depth.ranks[stage] for direction, depth in found.items()})
        for stage in found["text_to_image"].ranks
    }
    # By the vectors all items are ranked, not only the candidates.
    ranks["global"] = joined_ranks(
        [
            rank_queries(EmbeddingScores(fold.search.image_vectors, fold.search.caption_vectors), fold.caption_image)
            for fold in folds
        ]
    )
    return ranks
