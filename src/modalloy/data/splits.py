"""A collection's splits drawn anew, reproducibly: to choose a fusion by, to align inputs on, to report on."""

import hashlib
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from modalloy.data.item import Item
from modalloy.data.manifest import Manifest
from modalloy.errors import ConfigError, DataError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitsConfig:
    """How a collection's splits are drawn anew; by default they stay as they are."""

    seed: int = 0
    """Decides which images are drawn; an image's lot depends on nothing but it and its id (or family)."""
    tune: int = 0
    """Captioned images to take out of train for tune, by which a fusion is chosen."""
    inputs: float = 0.0
    """Share of the captioned images left in train to take for inputs, on which inputs can be aligned (align.split)."""
    test: Literal["test", "val"] = "test"
    """The split to report on: val stands in where the test part is missing or sealed, whose images are then unused."""

    def __post_init__(self) -> None:
        if self.test not in ("test", "val"):
            raise ConfigError(f"splits.test must be 'test' or 'val', got {self.test!r}.")
        if self.tune < 0:
            raise ConfigError(f"splits.tune must be at least 0 images, got {self.tune}.")
        if not 0 <= self.inputs < 1:
            raise ConfigError(f"splits.inputs must be a share in [0, 1), got {self.inputs}.")


def draw_splits(manifest: Manifest, config: SplitsConfig) -> Manifest:
    """The same items in the same order, so that stored features stay valid, with their splits drawn anew.

    Images are drawn in the order of a hash of the seed and their id, so that neither their order nor the other images
    decide it. A family stays together: one that would exceed what is asked for stays in train.

    Args:
        manifest: the collection.
        config: see `SplitsConfig`.

    Raises:
        DataError: train has too few images for that, the collection has a split already that would be drawn, or
            nothing is left to choose a fusion by.

    >>> from pathlib import Path
    >>> items = [Item(name, f"{name}.png", "0" * 64, "train", ("A letter.",)) for name in "abcdef"]
    >>> drawn = draw_splits(Manifest(Path("."), tuple(items)), SplitsConfig(tune=2, inputs=0.5))
    >>> {split: count["images"] for split, count in drawn.counts().items()}
    {'train': 2, 'tune': 2, 'inputs': 2}
    """
    splits = [item.split for item in manifest]
    for name, wanted in (("tune", config.tune), ("inputs", config.inputs)):
        if wanted and name in splits:
            raise DataError(
                f"the collection has a split {name!r} of its own ({splits.count(name):,} images), so that none can be "
                f"drawn; leave out splits.{name}."
            )
    if config.test == "val":
        _report_on_val(splits, config.tune)
    if config.tune:
        _draw(manifest, splits, "tune", config.tune, config.seed)
    if config.inputs:
        left = sum(bool(item.captions) for item, split in zip(manifest, splits, strict=True) if split == "train")
        _draw(manifest, splits, "inputs", round(config.inputs * left), config.seed)
    items = (replace(item, split=split) for item, split in zip(manifest, splits, strict=True))
    return Manifest(manifest.root, tuple(items))


def validation_split(splits: Collection[str]) -> str:
    """The split by which something is chosen: "tune" if there is one, so that "val" is left to the inputs.

    >>> validation_split(["train", "val", "test"]), validation_split(["train", "val", "tune"])
    ('val', 'tune')
    """
    return "tune" if "tune" in splits else "val"


def _report_on_val(splits: list[str], tune: int) -> None:
    """Renames val to test, and a test split that there is to unused."""
    if "val" not in splits:
        raise DataError("splits.test is 'val', but the collection has no split 'val'; leave it out.")
    if not tune and "tune" not in splits:
        raise DataError(
            "splits.test is 'val', which leaves nothing to choose a fusion by; take images for it (splits.tune)."
        )
    if sealed := splits.count("test"):
        _log.warning(
            "the collection's own test split (%s images) is unused: val is reported on instead.", f"{sealed:,}"
        )
    splits[:] = [{"test": "unused", "val": "test"}.get(split, split) for split in splits]


def _draw(manifest: Manifest, splits: list[str], name: str, wanted: int, seed: int) -> None:
    """Moves `wanted` captioned images of train to the split `name`, or a few less where families don't add up."""
    families: dict[str, list[int]] = {}
    for row, (item, split) in enumerate(zip(manifest, splits, strict=True)):
        if split == "train":
            families.setdefault(_lot(item, name, seed), []).append(row)
    captioned = {lot: sum(bool(manifest[row].captions) for row in rows) for lot, rows in families.items()}
    there = sum(captioned.values())
    if not 0 < wanted < there:
        raise DataError(
            f"{name} takes {wanted:,} images of the {there:,} captioned ones in train, which must leave some of both; "
            f"change splits.{name}."
        )
    taken = 0
    for lot in sorted(families):
        if captioned[lot] and taken + captioned[lot] <= wanted:
            taken += captioned[lot]
            for row in families[lot]:
                splits[row] = name
    if taken < wanted:
        _log.warning("%s has %d images instead of %d, since families stay together.", name, taken, wanted)


def _lot(item: Item, name: str, seed: int) -> str:
    """What decides an item's place among the drawn: the same for a family, another one for each split and seed."""
    key = ["id", item.id] if item.family is None else ["family", item.family]
    return hashlib.sha256(json.dumps([seed, name, *key]).encode()).hexdigest()
