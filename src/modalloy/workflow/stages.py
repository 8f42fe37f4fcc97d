"""What HACAN's stages give on a split: vectors alone, re-ranked by the focal score, and by the cross-layer score."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modalloy.data.splits import validation_split
from modalloy.encoders import Encoder
from modalloy.errors import ConfigError
from modalloy.evaluation import EmbeddingScores, Ranks, compare, rank_queries
from modalloy.evaluation.folds import joined_ranks
from modalloy.evaluation.ranks import DIRECTIONS, Direction
from modalloy.search import DepthLadder, Fold, HierarchyConfig, choose_depths
from modalloy.search.depth import TIMED_QUERIES, Depth, measure_depth
from modalloy.search.depths import DepthChoice
from modalloy.workflow.evaluate import names_of, with_counts
from modalloy.workflow.features import Collection
from modalloy.workflow.local_features import LocalFeatures

CHOSEN, _ALL = "chosen", "all"
AVERAGE = "average"


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


def evaluate_stages(
    encoders: Sequence[Encoder],
    collection: Collection,
    split: str = "test",
    config: HierarchyConfig | None = None,
    ladder: DepthLadder | None = None,
    fold_size: int | None = None,
    timed: int = TIMED_QUERIES,
) -> dict[str, Any]:
    """Ranks a split stage by stage, a truth that fell out of a stage's candidates being a miss.

    Args:
        encoders: aligned encoders with local branches; of several each alone, and the average of all.
        collection: features that aren't stored yet are extracted.
        split: the split to evaluate on.
        config: the candidates of each stage; by default they are chosen on the split "tune", or "val", for each
            direction of retrieval (see `choose_depths`).
        ladder: what to choose from; its candidates for the cross-layer stage have no part where there are no terms
            for that.
        fold_size: search each query among so many images and their captions, fold by fold, as COCO's 1K protocol does
            with 1,000; the choice is made in such folds, too.
        timed: how many queries are timed one by one, at each depth.

    Returns:
        The items counted, each stage's metrics and the differences of the last one's (of the average, if there is one)
        from the others with their intervals, milliseconds of a query on its own and in batches, and what each depth
        gave where the depth was chosen; ready for JSON.

    Raises:
        ConfigError: an encoder has no local branch, is given twice or is called "average", a stage needs a level of
            tokens that an encoder doesn't read, or the candidates would be chosen on the split itself.
        DataError: there is no such split, or it has no usable items, or they don't make whole folds.
    """
    line_ups = _line_ups(encoders)
    choose_on = validation_split(list(collection.manifest.counts()))
    if config is None and choose_on == split:
        raise ConfigError(
            f"the candidates would be chosen on {split!r}, the split to evaluate on; give them, such as 100:20."
        )
    collection.manifest.split(split)  # a misspelt one is found before the work
    features = LocalFeatures(encoders, collection)
    counts = features.counts(split) | ({} if fold_size is None else {"fold_size": fold_size})
    measured: dict[str, dict[Direction, Depth]] = {}
    systems: dict[str, list[Ranks]] = {}
    depths: dict[str, dict[str, Any]] = {}
    for name, which in line_ups.items():
        if config is None:
            choices = _choices(features.folds(choose_on, fold_size, which), ladder or DepthLadder(), timed)
            settings = {direction: choice.chosen.config for direction, choice in choices.items()}
            for direction, choice in choices.items():
                depths[_label(name, direction)] = {"split": choose_on, "system": name, **choice.to_dict()}
        else:
            settings = dict.fromkeys(DIRECTIONS, config)
        folds = features.folds(split, fold_size, which)
        measured[name] = {each: measure_depth(folds, each, settings[each], timed) for each in DIRECTIONS}
        systems |= {_label(name, stage): [ranks] for stage, ranks in _ranks(folds, measured[name]).items()}
    caption_image = features.paired.split(split).caption_image
    comparison = compare(systems, caption_image, reference=list(systems)[-1])
    return with_counts(split, counts, comparison.to_dict() | _times(measured) | {"depths": depths})


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


def _times(measured: dict[str, dict[Direction, Depth]]) -> dict[str, dict[Direction, dict[str, float]]]:
    """Milliseconds of every stage of every system, by direction: of a query on its own, and in batches."""
    return {
        kind: {
            direction: {
                _label(name, stage): time
                for name, found in measured.items()
                for stage, time in getattr(found[direction], kind).items()
            }
            for direction in DIRECTIONS
        }
        for kind in ("milliseconds", "batched")
    }


def _choices(folds: Sequence[Fold], ladder: DepthLadder, timed: int) -> dict[Direction, DepthChoice]:
    if any(all(term.focal for term in member.local.terms) for member in folds[0].search.members):
        ladder = replace(ladder, cross_candidates=())
    return {direction: choose_depths(folds, direction, ladder, timed=timed) for direction in DIRECTIONS}
