"""Weights on the simplex, not negative and of sum 1, by which a sum of similarities retrieves best."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import combinations, product
from typing import Literal

from jaxtyping import Int
from torch import Tensor

from modalloy.evaluation import ScoreFunction
from modalloy.fusion.learned_weights import learn_weights
from modalloy.fusion.part_scores import PartScores

Criterion = Literal["rsum", "contrast"]
STEPS = 20
# With more parts the grid grows out of reach: 1,771 points at 4 parts, 888,030 at 8.
_GRID_PARTS = 3

_Counts = tuple[int, ...]
_Key = Callable[[_Counts], tuple[float, int, _Counts]]


def choose_weights(
    scores: Sequence[ScoreFunction], caption_image: Int[Tensor, " captions"], criterion: Criterion = "rsum"
) -> tuple[float, ...]:
    """The weights of similarities that suit the given (validation) items best.

    Args:
        scores: the similarities.
        caption_image: the row of each caption's image.
        criterion: "rsum": see `best_weights`; "contrast": see `learn_weights`.

    Raises:
        ConfigError: there are no similarities.
        DataError: the similarities have different sizes, or `caption_image` doesn't fit them.
    """
    parts = PartScores(scores, caption_image)
    return best_weights(parts) if criterion == "rsum" else learn_weights(parts)


def best_weights(parts: PartScores, steps: int = STEPS) -> tuple[float, ...]:
    """The weights in multiples of 1/`steps` with the best RSum; among equals the more even weights win.

    For at most 3 parts all of them are tried. For more it is an ascent: of each pair of parts in turn all ways to
    split what the two have are tried, until no pair gains; from even weights, from the best part alone and from the
    best two. It ends where no single exchange helps, which may be below the best of all.

    Args:
        parts: what is weighed.
        steps: fineness of the weights.
    """

    @cache
    def key(counts: _Counts) -> tuple[float, int, _Counts]:
        rsum = parts.rsum([count / steps for count in counts])
        return rsum, -max(counts), tuple(-count for count in counts)

    if len(parts) <= _GRID_PARTS:
        best = max(_grid(len(parts), steps), key=key)
    else:
        best = max((_ascend(start, key) for start in _starts(len(parts), steps, key)), key=key)
    return tuple(count / steps for count in best)


def _grid(inputs: int, steps: int) -> list[_Counts]:
    grid = [counts for counts in product(range(steps + 1), repeat=inputs) if sum(counts) == steps]
    return sorted(grid, key=lambda counts: (max(counts), counts))


def _starts(parts: int, steps: int, key: _Key) -> Iterator[_Counts]:
    def spread(chosen: Sequence[int]) -> _Counts:
        """As even as can be over some parts."""
        counts = [0] * parts
        for place, part in enumerate(chosen):
            counts[part] = steps * (place + 1) // len(chosen) - steps * place // len(chosen)
        return tuple(counts)

    yield spread(range(parts))
    for size in (1, 2):
        yield max(map(spread, combinations(range(parts), size)), key=key)


def _ascend(counts: _Counts, key: _Key) -> _Counts:
    while True:
        before = counts
        for one, other in combinations(range(len(counts)), 2):
            counts = max(_splits(counts, one, other), key=key)
        if counts == before:
            return counts


def _splits(counts: _Counts, one: int, other: int) -> Iterator[_Counts]:
    """All ways in which two parts can share what they have together."""
    both = counts[one] + counts[other]
    for count in range(both + 1):
        changed = list(counts)
        changed[one], changed[other] = count, both - count
        yield tuple(changed)
