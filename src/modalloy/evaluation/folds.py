"""Ranks within folds of a gallery, as in COCO's 1K protocol: five folds of 1,000 of its 5,000 test images."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.blocks import check_captions
from modalloy.evaluation.ranks import Ranks, rank_queries
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
    if fold_size < 1:
        raise ConfigError(f"fold_size must be at least 1 image, got {fold_size}")
    image_of = check_captions(caption_image, scores.n_images, scores.n_captions)
    if scores.n_images % fold_size:
        raise DataError(
            f"{scores.n_images:,} images don't make folds of {fold_size:,}; evaluate all of a split whose size is a "
            "multiple of that (were some of its images rejected?), or choose another fold size"
        )
    fold_of = image_of // fold_size
    if bool((fold_of.diff() < 0).any()):
        raise DataError("the captions of a fold's images must stand together, in the order of the folds; sort them")
    counts = fold_of.bincount(minlength=scores.n_images // fold_size).tolist()
    found, start = [], 0
    for fold, count in enumerate(counts):
        part = _Fold(scores, fold * fold_size, start, fold_size, count)
        found.append(rank_queries(part, image_of[start : start + count] - fold * fold_size))
        start += count
    return Ranks(*(torch.cat([getattr(each, side) for each in found]) for side in ("image_to_text", "text_to_image")))


@dataclass(frozen=True)
class _Fold:
    """The scores of some images, one after the other, against some captions."""

    scores: ScoreFunction
    first_image: int
    first_caption: int
    n_images: int
    n_captions: int

    def score(self, images: slice, captions: slice) -> Float[Tensor, "images captions"]:
        return self.scores.score(_shifted(images, self.first_image), _shifted(captions, self.first_caption))


def _shifted(rows: slice, by: int) -> slice:
    return slice(rows.start + by, rows.stop + by)
