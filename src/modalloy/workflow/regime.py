"""Whether the inputs know the training pairs: the regime of a fusion.

An encoder that was fitted on the pairs which the fusion trains on ranks them far better than any others ("shared"), so
that hardly an error of its is left there to learn from; one that saw other pairs ("foreign") ranks them like any.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from modalloy.errors import ConfigError
from modalloy.evaluation import Difference, Ranks, metrics, rank_queries
from modalloy.evaluation.bootstrap import interval, resample
from modalloy.fusion import SplitFeatures
from modalloy.fusion.subset import subset

MARGIN = 30.0


@dataclass(frozen=True)
class InputRegime:
    """How one input ranks training pairs and others."""

    name: str
    """The input's name."""
    train: float
    """RSum on training pairs."""
    validation: float
    """RSum on as many validation pairs."""
    difference: Difference
    """Training minus validation, with its interval."""
    verdict: Literal["shared", "foreign"]
    """"shared" if the whole interval lies above the margin."""


@dataclass(frozen=True)
class Regime:
    """The verdict on all inputs, and what it rests on; nothing if it was stated and not detected."""

    verdict: Literal["shared", "foreign", "mixed"]
    """"mixed" if some inputs know the training pairs and others don't."""
    inputs: tuple[InputRegime, ...] = ()
    """Each input's numbers."""
    pairs: int = 0
    """Training pairs, and as many validation pairs, that were ranked."""
    margin: float = MARGIN
    """RSum by which training pairs must be ranked better."""

    def sentence(self) -> str:
        """The verdict with its numbers, for people.

        >>> Regime("foreign").sentence()
        'Regime foreign, as configured.'
        """
        if not self.inputs:
            return f"Regime {self.verdict}, as configured."
        who = {"shared": "every input knows", "foreign": "no input knows", "mixed": "some inputs know"}[self.verdict]
        numbers = "; ".join(
            f"{each.name} {each.train:.1f} and {each.validation:.1f} ({each.difference.value:+.1f} "
            f"[{each.difference.low:+.1f}, {each.difference.high:+.1f}], {each.verdict})"
            for each in self.inputs
        )
        return (
            f"Regime {self.verdict}: {who} the training pairs, by RSum on {self.pairs:,} of them and on as many "
            f"validation pairs (shared where the difference is surely above {self.margin:g}): {numbers}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "inputs": [asdict(each) for each in self.inputs]}


def detect_regime(
    train: SplitFeatures,
    validation: SplitFeatures,
    names: Sequence[str],
    margin: float = MARGIN,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Regime:
    """Tells whether inputs know the training pairs, by their RSum on some of them and on as many validation pairs.

    Both are galleries of one size: a random sample of images with one random caption each. An input is "shared" if
    the bootstrap interval of the difference, both samples drawn anew, lies above the margin.

    Args:
        train: the items that the fusion trains on.
        validation: items that no input was fitted on.
        names: a name for each input.
        margin: RSum by which training pairs must be ranked better.
        samples: number of resamples.
        seed: of the samples and the resamples.
        level: share of the resamples that the interval covers.

    Raises:
        ConfigError: not one name for each input, or a bootstrap option out of range.
    """
    if len(names) != len(train.paired.image.stores):
        raise ConfigError(f"expected a name for each of {len(train.paired.image.stores)} inputs, got {list(names)}.")
    splits = (train, validation)
    pairs = min(len(split.caption_image.unique()) for split in splits)
    parts = [_sample(split, pairs, seed + place) for place, split in enumerate(splits)]
    ranks = [[rank_queries(scores, part.caption_image) for scores in part.input_scores()] for part in parts]
    inputs = tuple(
        _compare(name, on_train, on_validation, parts, margin, samples, seed, level)
        for name, on_train, on_validation in zip(names, *ranks, strict=True)
    )
    verdicts = {each.verdict for each in inputs}
    return Regime(verdicts.pop() if len(verdicts) == 1 else "mixed", inputs, pairs, margin)


def _compare(
    name: str,
    train: Ranks,
    validation: Ranks,
    parts: Sequence[SplitFeatures],
    margin: float,
    samples: int,
    seed: int,
    level: float,
) -> InputRegime:
    # Other pairs on either side, so the draws are independent, unlike those of `bootstrap_difference`.
    drawn = [
        resample([ranks], part.caption_image, "rsum", samples, seed + place)[1][:, 0]
        for place, (ranks, part) in enumerate(zip((train, validation), parts, strict=True))
    ]
    on_train, on_validation = metrics(train).rsum, metrics(validation).rsum
    difference = Difference(*interval(on_train - on_validation, drawn[0] - drawn[1], level))
    return InputRegime(name, on_train, on_validation, difference, "shared" if difference.low > margin else "foreign")


def _sample(split: SplitFeatures, count: int, seed: int) -> SplitFeatures:
    """So many captioned images, with one caption each."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randperm(len(split.caption_image), generator=generator)
    first = torch.full((len(split.image_rows),), len(place)).scatter_reduce_(0, split.caption_image, place, "amin")
    captioned = (first < len(place)).nonzero().squeeze(1)
    images = torch.zeros(len(split.image_rows), dtype=torch.bool)
    images[captioned[torch.randperm(len(captioned), generator=generator)[:count]]] = True
    return subset(split, images, place == first[split.caption_image])
