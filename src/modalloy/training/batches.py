"""Batches of image-caption pairs, drawn from (seed, epoch) alone.

So a training that was killed and resumed sees the same batches as one that ran through.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from modalloy.errors import ConfigError, DataError


class PairRows(NamedTuple):
    """Rows of matching images and captions: caption `captions[i]` describes image `images[i]`."""

    images: Int[Tensor, "batch"]
    captions: Int[Tensor, "batch"]
    copies: Int[Tensor, "batch"] | None = None
    """Which augmented copy of each image, -1 for the image itself; None if all are the images themselves."""


@runtime_checkable
class PairDataset(Protocol):
    """What `pair_loader` reads: the training batch for some rows."""

    def __getitem__(self, rows: PairRows, /) -> Any:
        """The batch whose images and captions stand in `rows`."""


class PairSampler(Sampler[PairRows]):
    """Batches of pairs; an epoch visits every image that has a caption once, with a caption drawn at random.

    Lightning calls `set_epoch` before each epoch. A last batch of one pair is left out, since a contrastive
    loss has nothing to compare it with.

    Arguments:
        caption_image: the image row of each caption.
        caption_rows: the caption rows to draw from, all by default; so a split is chosen, and rejected items
            are left out.
        batch_size: pairs in a batch, at least 2.
        seed: with the epoch, decides everything that is drawn.
        all_captions: whether an epoch visits every caption once instead of every image. Captions of one image
            may then share a batch.
        copies: augmented copies of each image, from which one is drawn, each as likely.
        augment_probability: the chance of an image to be replaced by a copy.
        captions_per_image: how many captions an epoch draws of each image, or all where an image has fewer. They stand
            side by side in one batch, of `batch_size` // `captions_per_image` images.
        smallest: a last batch of fewer pairs is left out, as is one of a single image.

    Raises:
        ConfigError: `batch_size` is smaller than 2 images with their captions or than `smallest`, or
            `captions_per_image` is given beside `all_captions`.
        DataError: fewer than 2 pairs to draw from.

    >>> sampler = PairSampler(torch.tensor([0, 0, 1, 2]), batch_size=2, seed=0)
    >>> len(sampler)
    1
    >>> all(pairs.images.tolist() == [[0, 0, 1, 2][c] for c in pairs.captions] for pairs in sampler)
    True
    """

    def __init__(
        self,
        caption_image: Int[Tensor, "captions"],
        *,
        caption_rows: Int[Tensor, "chosen"] | None = None,
        batch_size: int,
        seed: int,
        all_captions: bool = False,
        copies: int = 0,
        augment_probability: float = 0.0,
        captions_per_image: int = 1,
        smallest: int = 2,
    ) -> None:
        if batch_size < 2 * captions_per_image:
            raise ConfigError(
                f"batch_size must be at least 2 for a contrastive loss, and at least twice captions_per_image, "
                f"got {batch_size} and {captions_per_image}."
            )
        if batch_size < smallest * captions_per_image:
            raise ConfigError(
                f"batch_size must be at least {smallest * captions_per_image}, an image with its captions for each "
                f"process, got {batch_size}."
            )
        if all_captions and captions_per_image > 1:
            raise ConfigError("all_captions already visits every caption; leave out captions_per_image, or it.")
        rows = torch.arange(len(caption_image)) if caption_rows is None else caption_rows
        images = caption_image[rows]
        order = torch.argsort(images, stable=True)
        self._captions = rows[order]
        self._images, self._counts = torch.unique_consecutive(images[order], return_counts=True)
        drawn = len(rows) if all_captions else len(self._images)
        if drawn < 2:
            raise DataError(f"Training needs at least 2 image-caption pairs to draw from, got {drawn}.")
        self._drawn = drawn
        self._first = self._counts.cumsum(0) - self._counts
        self._batch = batch_size // captions_per_image
        # In images where a batch holds several captions of each: of so many images there are at least as many pairs.
        self._smallest = max(2, smallest)
        self._captions_per_image = captions_per_image
        if drawn < self._smallest:
            raise DataError(f"Training needs at least {self._smallest} images or pairs for a batch, got {drawn}.")
        self._seed = seed
        self._all_captions = all_captions
        self._copies = copies
        self._augment_probability = augment_probability
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration draws."""
        self._epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self._drawn, self._batch)
        return whole + (rest >= self._smallest)

    @property
    def pairs(self) -> int:
        """Pairs in an epoch, those of a batch that is left out included."""
        if self._captions_per_image == 1:
            return self._drawn
        return int(self._counts.clamp(max=self._captions_per_image).sum())

    def __iter__(self) -> Iterator[PairRows]:
        generator = torch.Generator().manual_seed(_mixed_seed(self._seed, self._epoch))
        captions, counts = self._drawn_captions(generator)
        images = self._images.repeat_interleave(self._counts) if self._all_captions else self._images
        first = counts.cumsum(0) - counts
        order = torch.randperm(self._drawn, generator=generator)
        # Drawn last, so that a training without copies sees the batches that it would see anyhow.
        copies = self._drawn_copies(generator) if self._copies and self._augment_probability else None
        for drawn in order.split(self._batch)[: len(self)]:
            each = counts[drawn]
            pairs = drawn.repeat_interleave(each)
            within = torch.arange(len(pairs)) - (each.cumsum(0) - each).repeat_interleave(each)
            yield PairRows(images[pairs], captions[first[pairs] + within], None if copies is None else copies[pairs])

    def _drawn_captions(self, generator: torch.Generator) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " drawn"]]:
        """An epoch's captions, those of an image side by side, and how many belong to each thing drawn."""
        one_each = torch.ones(self._drawn, dtype=torch.int64)
        if self._all_captions:
            return self._captions, one_each
        if self._captions_per_image == 1:
            lots = torch.rand(len(self._images), generator=generator, dtype=torch.float64) * self._counts
            return self._captions[self._first + lots.long()], one_each
        owners = torch.arange(len(self._images)).repeat_interleave(self._counts)
        shuffled = torch.rand(len(self._captions), generator=generator, dtype=torch.float64).argsort()
        shuffled = shuffled[owners[shuffled].argsort(stable=True)]
        kept = torch.arange(len(shuffled)) - self._first[owners] < self._captions_per_image
        return self._captions[shuffled[kept]], self._counts.clamp(max=self._captions_per_image)

    def _drawn_copies(self, generator: torch.Generator) -> Int[Tensor, "drawn"]:
        augmented = torch.rand(self._drawn, generator=generator, dtype=torch.float64) < self._augment_probability
        return torch.randint(self._copies, (self._drawn,), generator=generator).where(augmented, torch.tensor(-1))


def pair_loader(dataset: PairDataset, sampler: PairSampler) -> DataLoader:
    """A loader whose batches are `dataset[rows]` for the rows that `sampler` draws, gathered in this process.

    The loader has a generator of its own: otherwise each new iteration would draw from torch's global one,
    and where an iteration starts differs between a resumed training and a whole one.
    """
    return DataLoader(dataset, sampler=sampler, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]


def seed_epoch(seed: int, epoch: int, process: int = 0) -> None:
    """Seeds torch's global random numbers (dropout, say) for one epoch, from `seed` and `epoch` alone.

    Of several processes that train together each draws its own.
    """
    torch.manual_seed(_mixed_seed(seed, epoch, *([process] if process else [])))


def _mixed_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
