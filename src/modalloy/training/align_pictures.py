"""What an alignment that trains its backbones reads: pictures, prepared batch by batch in processes of their own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from modalloy.data import Manifest
from modalloy.data.rand_augment import RandAugment
from modalloy.encoders import Encoder, Modality
from modalloy.encoders.base import Prepared
from modalloy.features.assembly import Rejection
from modalloy.features.preparation import Preparation, ReadingLoader
from modalloy.features.sources import Images, Source
from modalloy.training.align_batches import Split
from modalloy.training.batches import PairRows, PairSampler

_VALIDATED_AT_ONCE = 64


class EpochRows(NamedTuple):
    """Pairs that an epoch draws."""

    epoch: int
    """From 0."""
    rows: PairRows


class PictureBatch(NamedTuple):
    """Pictures ready for the backbone, by the rows of their split; captions stay rows, which cost no descriptors."""

    pictures: Sequence[Prepared] | Tensor
    images: Int[Tensor, "pictures"]
    """Which image each picture is of."""
    captions: Int[Tensor, "pictures"] | None
    """In training the caption beside each."""
    broken: tuple[str, ...]
    """Why others that were asked for are left out, each with its path."""


class EpochSampler(Sampler[EpochRows]):
    """A `PairSampler`'s batches with their epoch, so that whoever reads them knows it, whatever process it is in."""

    def __init__(self, pairs: PairSampler) -> None:
        self._pairs = pairs
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration draws."""
        self._epoch = epoch
        self._pairs.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[EpochRows]:
        return (EpochRows(self._epoch, rows) for rows in self._pairs)


class PictureViews(Source):
    """For each caption of a collection its picture, cropped and flipped; in each epoch in another way.

    Args:
        manifest: the collection.
        views: how pictures are cropped and flipped.
    """

    def __init__(self, manifest: Manifest, views: RandAugment) -> None:
        self.ids = manifest.caption_ids
        self.epoch = 0
        self._pictures = Images(manifest)
        self._image = manifest.caption_image.tolist()
        self._views = views

    def content(self, row: int) -> str:
        return f"{self._pictures.content(self._image[row])} {self._views.settings()} {self.epoch}"

    def path(self, row: int) -> str:
        return self._pictures.path(self._image[row])

    def load(self, row: int) -> Image.Image:
        return self._views(self._pictures.load(self._image[row]), f"{self.ids[row]}/{self.epoch}")


class TrainingPictures:
    """The pairs of a split, each with a view of its picture; a pair whose picture can't be read is left out.

    Args:
        encoder: the image backbone, which prepares the pictures.
        manifest: the split.
        kept: the split's captions that are drawn from, whose places are the pairs' rows.
        views: how pictures are cropped and flipped.
    """

    def __init__(self, encoder: Encoder, manifest: Manifest, kept: Int[Tensor, "captions"], views: RandAugment) -> None:
        self._source = PictureViews(manifest, views)
        self._prepare = Preparation(encoder, "image", self._source)
        self._kept = kept

    def __getitem__(self, drawn: EpochRows) -> PictureBatch:
        self._source.epoch = drawn.epoch
        rows = self._kept[drawn.rows.captions].tolist()
        return _batch(self._prepare, rows, drawn.rows.images, drawn.rows.captions)


class WholePictures:
    """The pictures of a split as they are, some at a time.

    Args:
        encoder: the image backbone, which prepares the pictures.
        manifest: the split.
        kept: the split's images that are asked for by their places in it.
    """

    def __init__(self, encoder: Encoder, manifest: Manifest, kept: Int[Tensor, "images"]) -> None:
        self._prepare = Preparation(encoder, "image", Images(manifest))
        self._kept = kept

    def __getitem__(self, images: Int[Tensor, "some"]) -> PictureBatch:
        return _batch(self._prepare, self._kept[images].tolist(), images, None)


class PictureSplit:
    """A split without its rejected items, whose pictures are read when they are needed.

    Args:
        encoders: the backbones.
        manifest: the split.
        stored: the same split by stored features, which know what was rejected.
    """

    def __init__(self, encoders: Mapping[Modality, Encoder], manifest: Manifest, stored: Split) -> None:
        texts = manifest.captions
        self.captions: list[str] = [texts[row] for row in stored.kept["text"].tolist()]
        self.caption_image: Int[Tensor, " captions"] = stored.gallery.caption_image
        self.families: Int[Tensor, " images"] = stored.families
        self.sample = stored.sample()
        self._image_encoder = encoders["image"]
        self._manifest = manifest
        self._kept = stored.kept

    def training(self, sampler: PairSampler, views: RandAugment, workers: int) -> DataLoader:
        """Pairs as the sampler draws them; the same ones for any number of workers."""
        dataset = TrainingPictures(self._image_encoder, self._manifest, self._kept["text"], views)
        return ReadingLoader(dataset, EpochSampler(sampler), workers)

    def validation(self, workers: int) -> DataLoader | None:
        """All pictures; None where there are no captions to find them by."""
        if not self.captions:
            return None
        dataset = WholePictures(self._image_encoder, self._manifest, self._kept["image"])
        return ReadingLoader(dataset, torch.arange(len(self.families)).split(_VALIDATED_AT_ONCE), workers)


def _batch(
    prepare: Preparation, rows: list[int], images: Int[Tensor, "asked"], captions: Int[Tensor, "asked"] | None
) -> PictureBatch:
    pictures = prepare[rows]
    if isinstance(pictures, Tensor):
        return PictureBatch(pictures, images, captions, ())
    broken = tuple(each.reason for each in pictures if isinstance(each, Rejection))
    whole = torch.tensor([not isinstance(each, Rejection) for each in pictures], dtype=torch.bool)
    left = [each for each in pictures if not isinstance(each, Rejection)]
    return PictureBatch(left, images[whole], None if captions is None else captions[whole], broken)
