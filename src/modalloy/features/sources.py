"""The items that one modality of a collection gives to an encoder, row by row."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence

from PIL import Image

from modalloy.data.images import open_image
from modalloy.data.manifest import Manifest
from modalloy.data.rand_augment import RandAugment
from modalloy.encoders.base import Modality
from modalloy.errors import DataError
from modalloy.features.store_manifest import digest_of_items


class Source(ABC):
    """Rows to encode; nothing is decoded before `load`."""

    ids: Sequence[str]
    """The id of each row."""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def content(self, row: int) -> str:
        """What the row's features depend on, besides the encoder."""

    @abstractmethod
    def path(self, row: int) -> str:
        """The picture that the row is, or is about."""

    @abstractmethod
    def load(self, row: int) -> Image.Image | str:
        """The item itself.

        Raises:
            ImageError: the picture can't be decoded.
        """

    def digest(self, rows: range | None = None) -> str:
        """SHA-256 over the ids and contents of `rows` (default: all)."""
        rows = range(len(self)) if rows is None else rows
        return digest_of_items((self.ids[row], self.content(row)) for row in rows)


class Images(Source):
    """The pictures of a collection."""

    def __init__(self, manifest: Manifest) -> None:
        self.ids = manifest.image_ids
        self._manifest = manifest

    def content(self, row: int) -> str:
        return self._manifest.items[row].sha256

    def path(self, row: int) -> str:
        return self._manifest.items[row].path

    def load(self, row: int) -> Image.Image:
        return open_image(self._manifest.absolute(self._manifest.items[row]))


class AugmentedImages(Images):
    """One augmented copy of each picture of some splits; its row keeps the picture's id.

    Args:
        manifest: the collection.
        augment: how pictures are augmented.
        copy: which copy, from 0.
        splits: whose pictures are augmented.

    Raises:
        DataError: the splits hold no picture, or there is no such split.
    """

    def __init__(self, manifest: Manifest, augment: RandAugment, copy: int, splits: Sequence[str] = ("train",)) -> None:
        super().__init__(manifest.split(*splits))
        if not self.ids:
            raise DataError(
                f"the collection has no image in {' or '.join(splits)} to augment; its counts are "
                f"{manifest.counts()}: set extraction.augmentations to 0."
            )
        self._augment = augment
        self._copy = copy
        self._made_by = json.dumps([augment.settings(), copy], sort_keys=True)

    def content(self, row: int) -> str:
        return f"{super().content(row)} {self._made_by}"

    def load(self, row: int) -> Image.Image:
        return self._augment(super().load(row), f"{self.ids[row]}/{self._copy}")


class Captions(Source):
    """The captions of a collection."""

    def __init__(self, manifest: Manifest) -> None:
        self.ids = manifest.caption_ids
        self._manifest = manifest
        self._captions = manifest.captions
        self._image = manifest.caption_image

    def content(self, row: int) -> str:
        return self._captions[row]

    def path(self, row: int) -> str:
        return self._manifest.items[int(self._image[row])].path

    def load(self, row: int) -> str:
        return self._captions[row]


def source_of(manifest: Manifest, modality: Modality) -> Source:
    """The rows of `modality`: one an image, or one a caption."""
    return Images(manifest) if modality == "image" else Captions(manifest)
