"""Weighted sums of the same few score matrices, ranked again and again while weights are sought.

- The matrices are computed once and held where they fit; otherwise each block is computed anew.
- Sums are compared in float32 first, and only what its rounding leaves undecided is summed in float64, so that the
  ranks are those of `WeightedScores`.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.errors import ConfigError
from modalloy.evaluation import ScoreFunction, WeightedScores, metrics, rank_queries
from modalloy.evaluation.blocks import check_captions, even_slices
from modalloy.evaluation.scores import check_same_size

HELD_BYTES = 2 << 30
_ROWS = 128
_UNIT = 2.0**-24
_UNDERFLOW = 2.0**-120


class PartScores:
    """Several score functions over the same images and captions, to be weighed in many ways.

    Args:
        parts: the score functions.
        caption_image: the row of each caption's image.
        held_bytes: the matrices are held in memory if they take no more; otherwise blocks are computed when needed.

    Raises:
        ConfigError: there are no parts.
        DataError: the parts have different sizes, or `caption_image` doesn't fit them.

    >>> from modalloy.evaluation import EmbeddingScores
    >>> right, wrong = EmbeddingScores(torch.eye(9), torch.eye(9)), EmbeddingScores(torch.eye(9), -torch.eye(9))
    >>> parts = PartScores([right, wrong], torch.arange(9))
    >>> parts.rsum([1.0, 0.0]), parts.rsum([0.0, 1.0])
    (600.0, 200.0)
    """

    def __init__(
        self, parts: Sequence[ScoreFunction], caption_image: Int[Tensor, " captions"], held_bytes: int = HELD_BYTES
    ) -> None:
        if not parts:
            raise ConfigError("weights are sought for one part or more, got none.")
        self._parts = check_same_size(parts)
        self.n_images, self.n_captions = parts[0].n_images, parts[0].n_captions
        self.caption_image = check_captions(caption_image, self.n_images, self.n_captions)
        fits = 4 * len(parts) * self.n_images * self.n_captions <= held_bytes
        self._held = [_Matrix(part) for part in parts] if fits else None

    def __len__(self) -> int:
        return len(self._parts)

    def row_slices(self) -> list[slice]:
        """The images in runs for `block`."""
        return even_slices(self.n_images, _ROWS)

    def block(self, images: slice) -> Float[Tensor, "parts images captions"]:
        """The scores of some images against all captions, by each part."""
        return torch.stack([part.score(images, slice(0, self.n_captions)) for part in self._held or self._parts])

    def positives(self) -> Float[Tensor, "parts captions"]:
        """The scores of each caption with its own image, by each part."""
        scores = torch.empty(len(self), self.n_captions)
        for rows in self.row_slices():
            own = ((self.caption_image >= rows.start) & (self.caption_image < rows.stop)).nonzero().squeeze(1)
            scores[:, own] = self.block(rows)[:, self.caption_image[own] - rows.start, own]
        return scores

    def weighted(self, weights: Sequence[float]) -> ScoreFunction:
        """The weighted sum of the parts.

        Raises:
            ConfigError: there isn't one finite weight for each part.
        """
        if self._held is None or len(weights) != len(self) or not all(map(math.isfinite, weights)):
            return WeightedScores(self._parts, weights)
        return _HeldSum(self._held, weights)

    def rsum(self, weights: Sequence[float]) -> float:
        """The RSum of the weighted sum, in percentage points."""
        return metrics(rank_queries(self.weighted(weights), self.caption_image)).rsum


class _Matrix:
    """A part's whole score matrix."""

    def __init__(self, part: ScoreFunction) -> None:
        self.n_images, self.n_captions = part.n_images, part.n_captions
        self.values = torch.cat(
            [part.score(rows, slice(0, part.n_captions)).float() for rows in even_slices(part.n_images, _ROWS)]
        ).cpu()
        self.largest = float(self.values.abs().max())

    def score(self, images: slice, captions: slice) -> Float[Tensor, "images captions"]:
        return self.values[images, captions]


class _HeldSum:
    """A weighted sum of held matrices, as `ScreenedScores`."""

    def __init__(self, matrices: Sequence[_Matrix], weights: Sequence[float]) -> None:
        self._matrices, self._weights = matrices, weights
        self.n_images, self.n_captions = matrices[0].n_images, matrices[0].n_captions

    def score(self, images: slice, captions: slice) -> Float[Tensor, "images captions"]:
        return self._sum([matrix.values[images, captions] for matrix in self._matrices])

    def pairs(self, images: Int[Tensor, " pairs"], captions: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        return self._sum([matrix.values[images, captions] for matrix in self._matrices])

    def _sum(self, parts: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "..."]:
        # As in WeightedScores, to the last bit.
        total = torch.zeros_like(parts[0], dtype=torch.float64)
        for weight, part in zip(self._weights, parts, strict=True):
            total += weight * part.double()
        return total.float()

    @property
    def screens(self) -> tuple[torch.dtype, ...]:
        return (torch.float32,) if all(math.isfinite(matrix.largest) for matrix in self._matrices) else ()

    def screen(
        self, images: slice, captions: slice, precision: torch.dtype
    ) -> tuple[Float[Tensor, "images captions"], float]:
        """The sum in float32: its n products and n sums, the weights and the exact sum are each rounded once."""
        used = [(w, matrix) for w, matrix in zip(self._weights, self._matrices, strict=True) if w]
        total = torch.zeros_like(self._matrices[0].values[images, captions])
        for weight, matrix in used:
            total.add_(matrix.values[images, captions], alpha=weight)
        size = sum(abs(weight) * matrix.largest for weight, matrix in used)
        return total, (len(used) + 4) * (_UNIT * size + _UNDERFLOW)
