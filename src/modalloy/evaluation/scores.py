"""Where scores come from: anything that can give a block of the image x caption score matrix.

- `ScoreFunction` is the whole contract: two sizes and one block.
- `ScreenedScores` adds what makes ranking fast: a cheap block with a bound of its error, and the exact
  scores of single pairs. Only pairs within the bound of a query's positive are then scored exactly.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.errors import ConfigError, DataError

_PAIR_NUMBERS = 1 << 17
_ROWS = 1024
_SCREEN_SIDE = 16
_FLOAT32_UNIT = 2.0**-24
_UNDERFLOW = 2.0**-120
_SLACK = 1.001
_LARGEST = 1e37


@runtime_checkable
class ScoreFunction(Protocol):
    """Scores of images against captions, one block at a time."""

    @property
    def n_images(self) -> int:
        """Rows of the score matrix."""

    @property
    def n_captions(self) -> int:
        """Columns of the score matrix."""

    def score(self, images: slice, captions: slice) -> Float[Tensor, "images captions"]:
        """Return one block; a pair's score must not depend on the block it is asked in."""


@runtime_checkable
class ScreenedScores(ScoreFunction, Protocol):
    """A score function that can also screen a block cheaply and score single pairs exactly."""

    @property
    def screens(self) -> tuple[torch.dtype, ...]:
        """Precisions it can screen in, coarsest first; empty if none is both sound and faster."""

    def screen(
        self, images: slice, captions: slice, precision: torch.dtype
    ) -> tuple[Float[Tensor, "images captions"], float]:
        """Return a block rounded to `precision`, and the bound of its error before that rounding."""

    def pairs(self, images: Int[Tensor, "pairs"], captions: Int[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Return the exact scores of single pairs, equal to those of `score`."""


class EmbeddingScores:
    """Inner products of image and caption embeddings, the same in any block, on any number of threads.

    A score is the product summed in float64 and rounded to float32, so items with equal embeddings tie.

    Args:
        image_embedding: one row an image, on any scale (unit norm for cosines).
        text_embedding: one row a caption, as wide as the images'.

    Raises:
        DataError: the two widths differ, or an array is empty.

    >>> scores = EmbeddingScores(torch.eye(2), torch.tensor([[0.6, 0.8]]))
    >>> scores.score(slice(0, 2), slice(0, 1))
    tensor([[0.6000],
            [0.8000]])
    """

    def __init__(
        self,
        image_embedding: Float[Tensor, "images image_dim"],
        text_embedding: Float[Tensor, "captions text_dim"],
    ):
        for name, array in (("image", image_embedding), ("text", text_embedding)):
            if array.ndim != 2 or not array.numel():
                raise DataError(
                    f"{name} embeddings must be a filled array of (items, dim), got shape {tuple(array.shape)}"
                )
        if image_embedding.shape[1] != text_embedding.shape[1]:
            raise DataError(
                "image and text embeddings must be equally wide to be multiplied, got "
                f"{image_embedding.shape[1]} and {text_embedding.shape[1]} dimensions"
            )
        self._image = _plain(image_embedding)
        self._text = _plain(text_embedding)
        self._rounded: dict[torch.dtype, tuple[_Rounded, _Rounded]] = {}
        # Whether no product can be NaN or overflow.
        self._tame = bool(self._image.norm(dim=1).max() * self._text.norm(dim=1).max() < _LARGEST)

    @property
    def n_images(self) -> int:
        """Rows of the score matrix."""
        return len(self._image)

    @property
    def n_captions(self) -> int:
        """Columns of the score matrix."""
        return len(self._text)

    def score(self, images: slice, captions: slice) -> Float[Tensor, "images captions"]:
        """Return one block of scores."""
        return (self._image[images].double() @ self._text[captions].double().T).float()

    def pairs(self, images: Int[Tensor, "pairs"], captions: Int[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Return the scores of single pairs, a bounded number of them at a time."""
        step = max(1, _PAIR_NUMBERS // self._image.shape[1])
        parts = [
            (self._image[i].double() * self._text[j].double()).sum(1).float()
            for i, j in zip(images.split(step), captions.split(step), strict=True)
        ]
        return torch.cat(parts)

    @property
    def screens(self) -> tuple[torch.dtype, ...]:
        """bfloat16 where the processor multiplies it, float32 where torch is set to multiply it in full."""
        smallest = min(self.n_images, self.n_captions, self._image.shape[1])
        if self._image.device.type != "cpu" or smallest < _SCREEN_SIDE or not self._tame:
            return ()
        native = torch.cpu.get_capabilities().get("avx512_bf16", False)
        screens = [torch.bfloat16] if native and torch.backends.mkldnn.is_available() else []
        if torch.get_float32_matmul_precision() == "highest":
            screens.append(torch.float32)
        return tuple(screens)

    def screen(
        self, images: slice, captions: slice, precision: torch.dtype
    ) -> tuple[Float[Tensor, "images captions"], float]:
        """Return a block multiplied in `precision` and the bound of its error before its last rounding.

        With a', b' the rounded embeddings, |<a', b'> - <a, b>| <= |a - a'| |b| + |a'| |b - b'|
        (Cauchy-Schwarz); the sum in float32 adds at most dim units of rounding of |a'| |b'|.
        """
        if precision not in self._rounded:
            self._rounded[precision] = (_Rounded(self._image, precision), _Rounded(self._text, precision))
        image, text = self._rounded[precision]
        a, b = float(image.norm[images].max()), float(text.norm[captions].max())
        error_a, error_b = float(image.error[images].max()), float(text.error[captions].max())
        dim = self._image.shape[1]
        product = (a + error_a) * (b + error_b)
        margin = error_a * (b + error_b) + a * error_b + (dim + 4) * _FLOAT32_UNIT * product
        margin += dim * _UNDERFLOW * (1 + a + b)
        return (image.values[images] @ text.values[captions].T).float(), margin


class WeightedScores:
    """Weighted sum of several score functions over the same images and captions.

    Args:
        parts: the score functions.
        weights: one finite number for each.

    Raises:
        ConfigError: no parts, or not one finite weight for each.
        DataError: the parts have different sizes.

    >>> image, text = torch.eye(2), torch.eye(2)
    >>> parts = [EmbeddingScores(image, text), EmbeddingScores(image, -text)]
    >>> WeightedScores(parts, [0.75, 0.25]).score(slice(0, 1), slice(0, 2))
    tensor([[0.5000, 0.0000]])
    """

    def __init__(self, parts: Sequence[ScoreFunction], weights: Sequence[float]):
        if not parts or len(parts) != len(weights) or not all(math.isfinite(weight) for weight in weights):
            raise ConfigError(
                f"a weighted sum needs one finite weight for each score function, got {len(parts)} score "
                f"functions and weights {list(weights)}"
            )
        self._parts = check_same_size(parts)
        self._weights = list(weights)

    @property
    def n_images(self) -> int:
        """Rows of the score matrix."""
        return self._parts[0].n_images

    @property
    def n_captions(self) -> int:
        """Columns of the score matrix."""
        return self._parts[0].n_captions

    def score(self, images: slice, captions: slice) -> Float[Tensor, "images captions"]:
        """Return one block of weighted scores, summed in float64 and rounded to float32."""
        parts = [part.score(images, captions).double() for part in self._parts]
        total = torch.zeros_like(parts[0])
        for weight, part in zip(self._weights, parts, strict=True):
            total += weight * part
        return total.float()


def check_same_size(parts: Sequence[ScoreFunction]) -> list[ScoreFunction]:
    """Return the score functions as a list after checking that all are of one size.

    Raises:
        DataError: there are none, or their numbers of images or captions differ.
    """
    sizes = [(part.n_images, part.n_captions) for part in parts]
    if len(set(sizes)) != 1:
        raise DataError(f"score functions must cover the same images and captions, got (images, captions) of {sizes}")
    return list(parts)


class _Rounded:
    """Embeddings in a coarser precision, with bounds of the norm of each row and of what rounding it lost."""

    def __init__(self, embedding: Float[Tensor, "items dim"], precision: torch.dtype):
        self.values = embedding.to(precision)
        self.norm = _norm_bound(embedding)
        lost = [_norm_bound(rows - rows.to(precision)) for rows in embedding.split(_ROWS)]
        self.error = torch.cat(lost)


def _norm_bound(rows: Float[Tensor, "items dim"]) -> Float[Tensor, "items"]:
    """Row norms in float32, raised by more than their own rounding and underflow."""
    return rows.norm(dim=1) * _SLACK + rows.shape[1] * _UNDERFLOW**0.5


def _plain(embedding: Float[Tensor, "items dim"]) -> Float[Tensor, "items dim"]:
    """Contiguous float32 without a gradient; on the CPU where the device has no float64 to sum in."""
    device = "cpu" if embedding.device.type == "mps" else embedding.device
    return embedding.detach().to(device, torch.float32).contiguous()
