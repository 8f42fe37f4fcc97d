"""Comparing dual encoders on a split."""

from collections.abc import Sequence
from typing import Any

from modalloy.encoders import Encoder
from modalloy.errors import ConfigError
from modalloy.evaluation import compare, rank_in_folds, rank_queries
from modalloy.workflow.features import Collection


def evaluate(
    encoders: Sequence[Encoder], collection: Collection, split: str = "test", fold_size: int | None = None
) -> dict[str, Any]:
    """Ranks each encoder, alloys among them, on a split, and compares the first with every other.

    Args:
        encoders: dual encoders.
        collection: features that aren't stored yet are extracted.
        split: the split to evaluate on.
        fold_size: rank each query among so many images and their captions, fold by fold, as COCO's 1K protocol does
            with 1,000; by default among all. See `rank_in_folds`.

    Returns:
        The items counted, each encoder's metrics, and the differences with their intervals, ready for JSON.

    Raises:
        ConfigError: an encoder is given twice, or `fold_size` is below 1.
        DataError: there is no such split, or it has no usable items, or they don't make whole folds.
    """
    names = names_of(encoders)
    collection.manifest.split(split)  # a misspelt one is found before the work
    items = collection.paired(encoders).split(split)
    systems = {
        name: [
            rank_queries(scores, items.caption_image)
            if fold_size is None
            else rank_in_folds(scores, items.caption_image, fold_size)
        ]
        for name, scores in zip(names, items.input_scores(), strict=True)
    }
    comparison = compare(systems, items.caption_image, reference=names[0])
    counts = items.counts()
    if fold_size is not None:
        counts["fold_size"] = fold_size
    return with_counts(split, counts, comparison.to_dict())


def with_counts(split: str, counts: dict[str, int], results: dict[str, Any]) -> dict[str, Any]:
    """Results under which the items counted stand first, by the split's name.

    They stay where a comparison has its (here empty) list of inputs: that is a split's name too.
    """
    return {split: counts} | results | {split: counts}


def names_of(encoders: Sequence[Encoder]) -> list[str]:
    """The encoders' names, or their specs where two have the same name.

    Raises:
        ConfigError: an encoder is given twice.
    """
    names = [encoder.name for encoder in encoders]
    unique = [name if names.count(name) == 1 else encoder.spec for name, encoder in zip(names, encoders, strict=True)]
    repeated = [name for name in unique if unique.count(name) > 1]
    if repeated:
        raise ConfigError(f"{repeated[0]} is given {len(repeated)} times; compare different encoders.")
    return unique
