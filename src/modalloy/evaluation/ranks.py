"""From scores to ranks, block by block, in both directions at once.

- Only counts are kept: the negatives above and level with each query's best positive. Nothing is sorted and
  the score matrix never exists as a whole.
- Where the scores can be screened, a block is multiplied in a coarse precision; the few pairs that its error
  bound leaves undecided are scored exactly, so the ranks are the exact ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.errors import DataError
from modalloy.evaluation.blocks import check_captions, even_slices
from modalloy.evaluation.scores import ScoreFunction, ScreenedScores
from modalloy.evaluation.ties import expected_rank, never_nan

Direction = Literal["image_to_text", "text_to_image"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

# Above this share, scoring the undecided pairs one by one costs more than a finer product of the block.
_UNDECIDED_SHARE = 1 / 128


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where the truth stood for each query, in both directions; 1 is first.

    A rank may be fractional (ties), infinite (the truth wasn't among the candidates) or NaN (no query: an
    image without a caption).

    Raises:
        DataError: an array isn't a vector, is empty, or holds a rank below 1.
    """

    image_to_text: Float[Tensor, "images"]
    """Rank of the best-placed caption of each image."""
    text_to_image: Float[Tensor, "captions"]
    """Rank of each caption's image."""

    def __post_init__(self) -> None:
        for direction in DIRECTIONS:
            ranks = getattr(self, direction)
            if ranks.ndim != 1 or not len(ranks) or bool((ranks < 1).any()):
                raise DataError(
                    f"{direction} ranks must be a filled vector of numbers from 1, got shape "
                    f"{tuple(ranks.shape)}" + (f" and a least rank of {ranks.min()}" if ranks.numel() else "")
                )


@torch.no_grad()
def rank_queries(scores: ScoreFunction, caption_image: Int[Tensor, "captions"], block: int = 1024) -> Ranks:
    """Rank each image's captions and each caption's image, in blocks of bounded memory.

    Ties are counted by the expected rank when they are ordered uniformly at random: 1 + (negatives above
    the best positive) + (negatives level with it) / (positives at that score + 1). A NaN score counts as
    minus infinity, so it never outranks; a query whose positives all score so stands last, at the size of
    the gallery. An image without captions stays in the gallery but is no query: its rank is NaN.

    Args:
        scores: where blocks of the score matrix come from.
        caption_image: row of each caption's image; any number of captions an image, in any order.
        block: images and captions a block takes at most; memory grows with its square, the result is the
            same.

    Raises:
        DataError: `caption_image` doesn't fit the scores, or a gallery is empty.
        ConfigError: `block` is less than 1.

    >>> from modalloy.evaluation.scores import EmbeddingScores
    >>> images, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    >>> rank_queries(EmbeddingScores(images, texts), torch.tensor([0, 1, 1])).text_to_image
    tensor([1.0000, 1.0000, 1.5000], dtype=torch.float64)
    """
    image_of = check_captions(caption_image, scores.n_images, scores.n_captions)
    image_of = image_of.to(scores.score(slice(0, 1), slice(0, 1)).device)
    image_slices, caption_slices = even_slices(scores.n_images, block), even_slices(scores.n_captions, block)
    positive = _positive_scores(scores, image_of, image_slices, caption_slices)
    best = positive.new_full((scores.n_images,), -torch.inf).scatter_reduce_(0, image_of, positive, "amax")
    cells = -(-scores.n_images // len(image_slices)) * -(-scores.n_captions // len(caption_slices))
    scratch = torch.empty(cells, device=positive.device)
    images, captions = _Tally(best, 1, scratch), _Tally(positive, 0, scratch)
    screens = scores.screens if isinstance(scores, ScreenedScores) else ()
    for rows in image_slices:
        for columns in caption_slices:
            own = _own_pairs(image_of, rows, columns)
            screens = _count_block(scores, rows, columns, own, images, captions, screens)
    level = torch.zeros_like(best).index_add_(0, image_of, (positive == best[image_of]).to(best.dtype))
    image_to_text = images.ranks(level, worst=scores.n_captions)
    image_to_text[image_of.bincount(minlength=scores.n_images) == 0] = torch.nan
    text_to_image = captions.ranks(torch.ones_like(positive), worst=scores.n_images)
    return Ranks(image_to_text.cpu(), text_to_image.cpu())


def rank_each_direction(
    scores: Mapping[Direction, ScoreFunction], caption_image: Int[Tensor, "captions"], block: int = 1024
) -> Ranks:
    """Rank each direction by a score function of its own, as hubness corrections have; see `rank_queries`.

    Args:
        scores: the score function of each direction, of the same images and captions.
        caption_image: row of each caption's image.
        block: see `rank_queries`.

    Raises:
        DataError, ConfigError: see `rank_queries`.
    """
    found = {direction: rank_queries(scores[direction], caption_image, block) for direction in DIRECTIONS}
    return Ranks(**{direction: getattr(ranks, direction) for direction, ranks in found.items()})


class _Tally:
    """Counts of the negatives above and level with each query's best positive, in one direction.

    `axis` is the axis of a block along which the items, not the queries, lie; `scratch` has room for a block.
    """

    def __init__(self, best: Float[Tensor, "queries"], axis: int, scratch: Float[Tensor, "cells"]):
        self._scratch = scratch
        self._lost = best == -torch.inf
        self._axis = axis
        # A query whose positives never score is placed last whatever the counts: an infinite bar keeps it out
        # of the undecided pairs.
        self.bar = best.masked_fill(self._lost, torch.inf).double()
        self._above = torch.zeros_like(self.bar)
        self._level = torch.zeros_like(self.bar)

    def compare(
        self, block: Float[Tensor, "images captions"], queries: slice, margin: float, precision: torch.dtype
    ) -> "_Comparison":
        """Compare a block with the bars, widened by its margin and rounded just as the block was."""
        bar = self.bar[queries].unsqueeze(self._axis)
        low, high = ((bar + edge).to(precision).to(block.dtype) for edge in (-margin, margin))
        # Comparisons written as floats: torch sums them several times faster than booleans, and exactly.
        hits = self._scratch[: block.numel()].view_as(block)
        n_above = torch.gt(block, high, out=hits).sum(self._axis)
        n_reach = torch.ge(block, low, out=hits).sum(self._axis)
        return _Comparison(low, high, n_above, n_reach, 1 - self._axis)

    def add(self, queries: slice, above: Float[Tensor, "queries"], level: Float[Tensor, "queries"]) -> None:
        """Add the counts of one block."""
        self._above[queries] += above
        self._level[queries] += level

    def decide(self, queries: Int[Tensor, "pairs"], exact: Float[Tensor, "pairs"]) -> None:
        """Add single pairs by their exact scores."""
        bar = self.bar[queries]
        self._above.index_add_(0, queries, (exact > bar).double())
        self._level.index_add_(0, queries, (exact == bar).double())

    def ranks(self, positives: Float[Tensor, "queries"], worst: int) -> Float[Tensor, "queries"]:
        """Return the expected ranks, `worst` for the queries whose positives never score."""
        return torch.where(self._lost, worst, expected_rank(self._above, self._level, positives))


@dataclass(frozen=True)
class _Comparison:
    """A block against the bars of one direction: who is surely above, who perhaps level or above."""

    low: Float[Tensor, "..."]
    high: Float[Tensor, "..."]
    n_above: Float[Tensor, "queries"]
    n_reach: Float[Tensor, "queries"]
    query_axis: int

    def undecided(self, block: Float[Tensor, "images captions"]) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"]]:
        """Rows and columns in the block of the pairs between the two."""
        queries = (self.n_reach > self.n_above).nonzero()[:, 0]
        part, low, high = (x.index_select(self.query_axis, queries) for x in (block, self.low, self.high))
        rows, columns = ((part >= low) & (part <= high)).nonzero(as_tuple=True)
        return (queries[rows], columns) if self.query_axis == 0 else (rows, queries[columns])


def _count_block(
    scores: ScoreFunction,
    rows: slice,
    columns: slice,
    own: tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"]],
    images: _Tally,
    captions: _Tally,
    screens: tuple[torch.dtype, ...],
) -> tuple[torch.dtype, ...]:
    """Add one block to both tallies and return the screens still worth trying."""
    for number, precision in enumerate(screens):
        screened = cast(ScreenedScores, scores)
        block, margin = screened.screen(rows, columns, precision)
        block[own] = -torch.inf
        sides = (
            images.compare(block, rows, margin, precision),
            captions.compare(block, columns, margin, precision),
        )
        undecided = sum(float((side.n_reach - side.n_above).sum()) for side in sides)
        if undecided > _UNDECIDED_SHARE * block.numel():
            continue
        for tally, side, queries in zip((images, captions), sides, (rows, columns), strict=True):
            tally.add(queries, side.n_above, torch.zeros_like(side.n_above))
            pair_rows, pair_columns = side.undecided(block)
            if len(pair_rows):
                pair_rows, pair_columns = pair_rows + rows.start, pair_columns + columns.start
                tally.decide(
                    pair_rows if side.query_axis == 0 else pair_columns,
                    screened.pairs(pair_rows, pair_columns),
                )
        return screens[number:]
    block = never_nan(scores.score(rows, columns))
    block[own] = -torch.inf
    for tally, queries in ((images, rows), (captions, columns)):
        side = tally.compare(block, queries, 0.0, block.dtype)
        tally.add(queries, side.n_above, side.n_reach - side.n_above)
    return ()


def _positive_scores(
    scores: ScoreFunction,
    image_of: Int[Tensor, "captions"],
    image_slices: list[slice],
    caption_slices: list[slice],
) -> Float[Tensor, "captions"]:
    """Score of each caption with its image, taken from the very blocks that are compared with it later."""
    if isinstance(scores, ScreenedScores):
        return never_nan(scores.pairs(image_of, torch.arange(len(image_of), device=image_of.device)))
    positive: Tensor | None = None
    for rows in image_slices:
        for columns in caption_slices:
            own = _own_pairs(image_of, rows, columns)
            if len(own[0]):
                block = scores.score(rows, columns)
                if positive is None:
                    positive = block.new_empty(len(image_of))
                positive[own[1] + columns.start] = block[own]
    assert positive is not None
    return never_nan(positive)


def _own_pairs(
    image_of: Int[Tensor, "captions"], rows: slice, columns: slice
) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"]]:
    """Rows and columns in a block of the pairs of a caption and its own image."""
    row = image_of[columns] - rows.start
    column = ((row >= 0) & (row < rows.stop - rows.start)).nonzero()[:, 0]
    return row[column], column
