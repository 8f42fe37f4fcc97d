"""Ranks within folds of a gallery, as in COCO's 1K protocol: five folds of 1,000 of its 5,000 test images."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.blocks import check_captions
from modalloy.evaluation.ranks import DIRECTIONS, Ranks, rank_queries
from modalloy.evaluation.scores import ScoreFunction


def rank_in_folds(scores: ScoreFunction, caption_image: Int[Tensor, "captions"], fold_size: int) -> Ranks:
    """Rank each query among the items of its own fold: so many images, one after the other, and their captions.

    Of folds with equally many captions a recall of these ranks is the mean of the folds' recalls, which is what papers
    give; otherwise each caption counts alike.

    Source: Karpathy and Fei-Fei, CVPR 2015, section 4.1 ("1K test images"), in the form that VSE++ (Faghri et al., BMVC
    2018) made usual: the mean over 5 folds.

    Args:
        scores: where blocks of the score matrix come from.
        caption_image: row of each caption's image; the captions of a fold's images stand together.
        fold_size: images in a fold.

    Raises:
        ConfigError: `fold_size` is less than 1.
        DataError: the images don't make whole folds, or a fold's captions don't stand together; see also
            `rank_queries`.

    >>> from modalloy.evaluation.scores import EmbeddingScores
    >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9]])
    >>> scores = EmbeddingScores(vectors, torch.tensor([[1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.6, 0.4]]))
    >>> rank_in_folds(scores, torch.arange(4), fold_size=2).text_to_image
    tensor([1., 1., 2., 2.], dtype=torch.float64)
    """
    image_of = check_captions(caption_image, scores.n_images, scores.n_captions)
    return joined_ranks(
        [
            rank_queries(_Fold(scores, images, captions), image_of[captions] - images.start)
            for images, captions in fold_slices(image_of, scores.n_images, fold_size)
        ]
    )


def fold_slices(caption_image: Int[Tensor, "captions"], n_images: int, fold_size: int) -> list[tuple[slice, slice]]:
    """The images and the captions of each fold.

    Args:
        caption_image: row of each caption's image; the captions of a fold's images stand together.
        n_images: how many images there are.
        fold_size: images in a fold.

    Raises:
        ConfigError: `fold_size` is less than 1.
        DataError: the images don't make whole folds, or a fold's captions don't stand together.

    >>> fold_slices(torch.tensor([0, 0, 1, 2, 3]), 4, fold_size=2)
    [(slice(0, 2, None), slice(0, 3, None)), (slice(2, 4, None), slice(3, 5, None))]
    """
    if fold_size < 1:
        raise ConfigError(f"fold_size must be at least 1 image, got {fold_size}")
    if n_images % fold_size:
        raise DataError(
            f"{n_images:,} images don't make folds of {fold_size:,}; evaluate all of a split whose size is a "
            "multiple of that (were some of its images rejected?), or choose another fold size"
        )
    fold_of = caption_image // fold_size
    if bool((fold_of.diff() < 0).any()):
        raise DataError("the captions of a fold's images must stand together, in the order of the folds; sort them")
    ends = fold_of.bincount(minlength=n_images // fold_size).cumsum(0).tolist()
    return [
        (slice(fold * fold_size, (fold + 1) * fold_size), slice(start, end))
        for fold, (start, end) in enumerate(pairwise([0, *ends]))
    ]


def joined_ranks(folds: Sequence[Ranks]) -> Ranks:
    """The ranks of all folds' queries, in the order of the folds."""
    return Ranks(*(torch.cat([getattr(each, direction) for each in folds]) for direction in DIRECTIONS))


@dataclass(frozen=True)
class _Fold:
    """The scores of some images, one after the other, against some captions."""

    scores: ScoreFunction
    images: slice
    captions: slice

    @property
    def n_images(self) -> int:
        return int(self.images.stop - self.images.start)

    @property
    def n_captions(self) -> int:
        return int(self.captions.stop - self.captions.start)

    def score(self, images: slice, captions: slice) -> Float[Tensor, "images captions"]:
        return self.scores.score(_shifted(images, self.images.start), _shifted(captions, self.captions.start))


def _shifted(rows: slice, by: int) -> slice:
    return slice(rows.start + by, rows.stop + by)
