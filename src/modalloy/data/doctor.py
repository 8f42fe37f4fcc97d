"""Looks for what is wrong, or likely to mislead, in a collection."""

import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from modalloy.data.images import open_image
from modalloy.data.item import Item
from modalloy.data.manifest import Manifest
from modalloy.errors import ImageError
from modalloy.progress import BAR_FROM, track

LONG_CAPTION_WORDS = 50
"""Above this a text encoder may cut a caption off: CLIP's 77 tokens are some 55 English words."""

_NAMED = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding about a collection.

    >>> print(Problem("warning", "cat", "the image has no caption"))
    warning: cat: the image has no caption
    """

    severity: Literal["error", "warning"]
    """An error spoils results; a warning may."""
    item: str | None
    """The id of the item, or None where the whole collection is meant."""
    message: str
    """What was found and what to do."""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.severity, self.item, self.message)))


def check_collection(manifest: Manifest) -> list[Problem]:
    """Checks every file (present, unchanged, decodable) and what the splits share.

    Returns:
        The problems, errors first; empty if all is well.
    """
    checks = (_files, _leaks, _splits, _missing_pictures, _missing_captions, _shared_captions, _long_captions)
    problems = [problem for check in checks for problem in check(manifest)]
    return sorted(problems, key=lambda problem: problem.severity != "error")


def _files(manifest: Manifest) -> Iterator[Problem]:
    checked = track(_checked(manifest), "checking files", total=len(manifest), shown_from=BAR_FROM)
    for item, problem in zip(manifest, checked, strict=True):
        if problem is not None:
            yield Problem("error", item.id, problem)


def _checked(manifest: Manifest) -> Iterator[str | None]:
    """What is wrong with each picture, in order; decoding threads are at most a few pictures ahead."""
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, "modalloy-check") as pool:
        items = iter(manifest)
        waiting = deque(pool.submit(_picture_problem, manifest, item) for item in islice(items, 4 * workers))
        try:
            while waiting:
                problem = waiting.popleft().result()
                waiting.extend(pool.submit(_picture_problem, manifest, item) for item in islice(items, 1))
                yield problem
        finally:
            pool.shutdown(cancel_futures=True)


def _picture_problem(manifest: Manifest, item: Item) -> str | None:
    problem = manifest.file_problem(item)
    if problem is None and not _is_feature_file(item):
        try:
            open_image(manifest.absolute(item))
        except ImageError as error:
            problem = str(error)
    return problem


def _is_feature_file(item: Item) -> bool:
    """Whether an item imported with features alone is named by its feature file, in place of a picture."""
    return item.path.endswith(".npz")


def _leaks(manifest: Manifest) -> Iterator[Problem]:
    """Identical or near-identical images on both sides of a split."""
    for items in _groups(manifest, lambda item: item.sha256):
        others = _ids(items[1:])
        if len({item.split for item in items}) > 1:
            message = f"the same picture is in another split too ({others}); remove one"
            yield Problem("error", items[0].id, message)
        else:
            message = f"the same picture is there again ({others}); join their captions"
            yield Problem("warning", items[0].id, message)
    for items in _groups(manifest, lambda item: item.family):
        splits = sorted({item.split for item in items})
        if len(splits) > 1:
            message = f"its family {items[0].family!r} is in the splits {', '.join(splits)}; keep it in one"
            yield Problem("error", items[0].id, message)


def _splits(manifest: Manifest) -> Iterator[Problem]:
    counts = manifest.counts()
    if not any(item.captions for item in manifest):
        yield Problem("warning", None, "no image has a caption; the collection can only be indexed")
        return
    for name, use in (("train", "fit on"), ("val", "choose on"), ("test", "report on")):
        if not counts.get(name, {"captions": 0})["captions"]:
            message = f"the {name} split has no captioned image, so there is nothing to {use}"
            yield Problem("warning", None, message)


def _missing_pictures(manifest: Manifest) -> Iterator[Problem]:
    missing = sum(map(_is_feature_file, manifest))
    if missing:
        message = f"{missing:,} items were imported without their pictures, which can't be shown or encoded anew"
        yield Problem("warning", None, message)


def _missing_captions(manifest: Manifest) -> Iterator[Problem]:
    bare = [item for item in manifest if not item.captions]
    # Where all are, that is told of the whole collection.
    if len(bare) < len(manifest):
        for item in bare:
            yield Problem("warning", item.id, "the image has no caption; it can only be indexed")


def _shared_captions(manifest: Manifest) -> Iterator[Problem]:
    """A text that describes several images of an evaluated split has no single right answer there."""
    for name in ("val", "tune", "test"):
        part = manifest.split(name)
        counts = Counter(caption for item in part for caption in set(item.captions))
        owners: dict[str, list[Item]] = defaultdict(list)
        for item in part:
            for caption in dict.fromkeys(item.captions):
                if counts[caption] > 1:
                    owners[caption].append(item)
        for caption, items in owners.items():
            others = f"also that of {_ids(items[1:])} in {name}"
            message = f"its caption {caption!r} is {others}; only one image counts as right"
            yield Problem("warning", items[0].id, message)


def _long_captions(manifest: Manifest) -> Iterator[Problem]:
    for item in manifest:
        for number, caption in enumerate(item.captions):
            words = len(caption.split())
            if words > LONG_CAPTION_WORDS:
                message = f"caption {number} has {words} words; encoders may cut it after {LONG_CAPTION_WORDS}"
                yield Problem("warning", item.id, message)


def _groups(manifest: Manifest, key: Callable[[Item], str | None]) -> list[list[Item]]:
    """The items that share a key, where more than one does."""
    counts = Counter(map(key, manifest))
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in manifest:
        value = key(item)
        if value is not None and counts[value] > 1:
            groups[value].append(item)
    return list(groups.values())


def _ids(items: Sequence[Item]) -> str:
    more = f" and {len(items) - _NAMED:,} more" if len(items) > _NAMED else ""
    return ", ".join(item.id for item in items[:_NAMED]) + more
