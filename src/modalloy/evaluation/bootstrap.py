"""Bootstrap intervals of recall, paired between systems and clustered by image.

Images are drawn with replacement; each brings its own image query and the queries of all its captions, so
captions of one picture stay together. All systems are measured on the same draws. The gallery stays whole.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.blocks import check_captions
from modalloy.evaluation.metrics import CUTOFFS
from modalloy.evaluation.ranks import DIRECTIONS, Ranks

_DRAWN_AT_ONCE = 1 << 22
_MEASURE = re.compile(rf"({'|'.join(DIRECTIONS)}) R@([1-9]\d*)")


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its bootstrap percentile interval."""

    value: float
    """The value on the real queries, each once."""
    low: float
    """Lower bound."""
    high: float
    """Upper bound."""


@dataclass(frozen=True)
class Difference(Interval):
    """Difference of two systems, first minus second, in percentage points."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def bootstrap_difference(
    a: Ranks | Sequence[Ranks],
    b: Ranks | Sequence[Ranks],
    caption_image: Int[Tensor, "captions"],
    measure: str = "rsum",
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Interval of the difference `a` - `b`, paired and clustered by image.

    Several ranks of one system are its seeds: hits are averaged over them first, so the interval is that of
    the systems' means over these seeds on other queries.

    Args:
        a: ranks of the first system, one or one a seed.
        b: ranks of the second system on the same queries.
        caption_image: row of each caption's image.
        measure: "rsum", or a direction and cutoff such as "text_to_image R@1".
        samples: number of resamples.
        seed: seed of the draws.
        level: share of the resamples that the interval covers.

    Raises:
        ConfigError: an unknown measure, samples below 1 or a level outside (0, 1).
        DataError: ranks that don't fit each other or `caption_image`.

    >>> a, b = (Ranks(torch.full((9,), rank), torch.ones(9)) for rank in (1.0, 7.0))
    >>> bootstrap_difference(a, b, torch.arange(9), samples=50)
    Difference(value=200.0, low=200.0, high=200.0)
    """
    values, resampled = resample([a, b], caption_image, measure, samples, seed)
    return Difference(*interval(values[0] - values[1], resampled[:, 0] - resampled[:, 1], level))


def bootstrap_interval(
    ranks: Ranks | Sequence[Ranks],
    caption_image: Int[Tensor, "captions"],
    measure: str = "rsum",
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of one system's measure, clustered by image; arguments and errors as `bootstrap_difference`.

    >>> bootstrap_interval(Ranks(torch.ones(4), torch.ones(4)), torch.arange(4), samples=50)
    Interval(value=600.0, low=600.0, high=600.0)
    """
    values, resampled = resample([ranks], caption_image, measure, samples, seed)
    return Interval(*interval(values[0], resampled[:, 0], level))


def resample(
    systems: Sequence[Ranks | Sequence[Ranks]],
    caption_image: Int[Tensor, "captions"],
    measure: str = "rsum",
    samples: int = 2000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "systems"], Float[np.ndarray, "samples systems"]]:
    """Measure all systems on the real queries and on the same resamples of them, in percent.

    Raises:
        ConfigError: an unknown measure or samples below 1.
        DataError: ranks that don't fit each other or `caption_image`.
    """
    if samples < 1:
        raise ConfigError(f"samples must be at least 1, got {samples}")
    terms = _terms(measure)
    runs = [[system] if isinstance(system, Ranks) else list(system) for system in systems]
    image_of = _check_ranks(runs, caption_image)
    captions = np.bincount(image_of, minlength=len(runs[0][0].image_to_text))
    drawn = captions > 0
    sizes = {"image_to_text": np.ones(drawn.sum()), "text_to_image": captions[drawn].astype(float)}
    # One column a system for each term of the measure: the hits that an image brings, averaged over seeds.
    hits = [
        np.stack([_hits(seeds, direction, cutoff, image_of)[drawn] for seeds in runs], axis=1)
        for direction, cutoff in terms
    ]

    def measured(weights: Float[np.ndarray, "draws images"]) -> Float[np.ndarray, "draws systems"]:
        parts = (
            weights @ hit / (weights @ sizes[direction])[:, None]
            for hit, (direction, _) in zip(hits, terms, strict=True)
        )
        return 100 * sum(parts)

    resampled = [measured(weights) for weights in _draws(int(drawn.sum()), samples, seed)]
    return measured(np.ones((1, int(drawn.sum()))))[0], np.concatenate(resampled)


def interval(value: float, resampled: Float[np.ndarray, "samples"], level: float) -> tuple[float, float, float]:
    """Return the value and the percentile bounds of its resamples.

    Raises:
        ConfigError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must lie between 0 and 1 (0.95 covers 95% of the resamples), got {level}")
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(value), float(low), float(high)


def _terms(measure: str) -> list[tuple[str, int]]:
    """Directions and cutoffs whose recalls a measure sums."""
    if measure == "rsum":
        return [(direction, cutoff) for direction in DIRECTIONS for cutoff in CUTOFFS]
    match = _MEASURE.fullmatch(measure)
    if not match:
        raise ConfigError(
            f'measure must be "rsum" or a direction and cutoff such as "text_to_image R@1", got {measure!r}'
        )
    return [(match[1], int(match[2]))]


def _hits(
    seeds: Sequence[Ranks], direction: str, cutoff: int, image_of: Int[np.ndarray, "captions"]
) -> Float[np.ndarray, "images"]:
    """Hits among the queries that each image brings, averaged over seeds."""
    hit = np.mean([(getattr(ranks, direction) <= cutoff).double().cpu().numpy() for ranks in seeds], axis=0)
    if direction == "image_to_text":
        return hit
    return np.bincount(image_of, weights=hit, minlength=len(seeds[0].image_to_text))


def _draws(images: int, samples: int, seed: int) -> Iterator[Float[np.ndarray, "draws images"]]:
    """How often each image is drawn in each resample, some resamples at a time."""
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWN_AT_ONCE // images)
    for start in range(0, samples, step):
        draws = min(step, samples - start)
        drawn = generator.integers(images, size=(draws, images)) + images * np.arange(draws)[:, None]
        yield np.bincount(drawn.ravel(), minlength=draws * images).reshape(draws, images).astype(float)


def _check_ranks(
    runs: Sequence[Sequence[Ranks]], caption_image: Int[Tensor, "captions"]
) -> Int[np.ndarray, "captions"]:
    """Check that all ranks are of the same queries and return the captions' images."""
    if not runs or not all(runs):
        raise DataError("each system needs the ranks of at least one run, got none")
    sizes = {(len(ranks.image_to_text), len(ranks.text_to_image)) for seeds in runs for ranks in seeds}
    if len(sizes) != 1:
        raise DataError(
            f"ranks must be of the same images and captions to be compared, got (images, captions) of {sorted(sizes)}"
        )
    n_images, n_captions = sizes.pop()
    image_of = check_captions(caption_image, n_images, n_captions)
    captions = torch.bincount(image_of, minlength=n_images)
    for seeds in runs:
        for ranks in seeds:
            wrong = ranks.image_to_text.isnan().cpu() != (captions == 0).cpu()
            if bool(wrong.any()) or bool(ranks.text_to_image.isnan().any()):
                raise DataError(
                    "ranks must be NaN for the images without a caption and for nothing else: these belong "
                    "to another caption_image"
                )
    return image_of.cpu().numpy()
