"""The features of a batch of pairs, as the training of a fusion reads them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.fusion.feature_set import FeatureSet
from modalloy.fusion.inputs import EncoderFeatures
from modalloy.training.batches import PairRows
from modalloy.training.processes import part_of
from modalloy.training.teacher import TeacherVectors


@dataclass(frozen=True)
class PairBatch:
    """The features of a batch of pairs, or this process's part of them: image row k belongs to text row k."""

    image: list[EncoderFeatures]
    text: list[EncoderFeatures]
    images: Int[Tensor, " batch"]
    """The row of each pair's image; of the whole batch, also where the features are a part."""
    families: Int[Tensor, " batch"]
    """The family of each pair's image, likewise."""
    image_of: Int[Tensor, " part"] | None = None
    """Which row of the image features belongs to each pair of this process's part, where an image with several captions
    stands there once."""
    taught: Float[Tensor, "batch batch"] | None = None
    """A teacher's similarity of each image with each text of the whole batch, where there is a teacher."""

    def of_pairs(self, image_rows: Float[Tensor, "images dim"]) -> Float[Tensor, "part dim"]:
        """What belongs to the rows of the image features, for each pair."""
        return image_rows if self.image_of is None else image_rows[self.image_of]

    def to(self, device: torch.device, non_blocking: bool = False) -> "PairBatch":
        """The same batch on another device."""
        return PairBatch(
            [features.to(device, non_blocking) for features in self.image],
            [features.to(device, non_blocking) for features in self.text],
            self.images.to(device, non_blocking=non_blocking),
            self.families.to(device, non_blocking=non_blocking),
            None if self.image_of is None else self.image_of.to(device, non_blocking=non_blocking),
            None if self.taught is None else self.taught.to(device, non_blocking=non_blocking),
        )


class PairFeatures:
    """Reads the features of a batch of pairs; its index is what `PairSampler` yields.

    Args:
        image_features: features of all images.
        text_features: features of all captions.
        families: the family of each image; items of one family are never each other's negatives.
        tokens: how many tokens of each item the fuser reads; None for all.
        grouped: whether the captions of an image stand side by side, so that its features are read and fused once.
        teacher: whose similarities the batches hold; by default none's.
    """

    def __init__(
        self,
        image_features: FeatureSet,
        text_features: FeatureSet,
        families: Int[Tensor, " images"],
        tokens: int | None = None,
        grouped: bool = False,
        teacher: TeacherVectors | None = None,
    ) -> None:
        self.image_features = image_features
        self.text_features = text_features
        self.families = families
        self.tokens = tokens
        self.grouped = grouped
        self.teacher = teacher

    def __getitem__(self, rows: PairRows) -> PairBatch:
        part = part_of(len(rows.images))
        images, image_of = rows.images[part], None
        copies = None if rows.copies is None else rows.copies[part]
        if self.grouped:
            images, image_of = torch.unique_consecutive(images, return_inverse=True)
            if copies is not None:
                # The copies of an image's pairs are the same one.
                copies = copies.new_empty(len(images)).index_put((image_of,), copies)
        return PairBatch(
            self.image_features.batch(images, self.tokens, copies),
            self.text_features.batch(rows.captions[part], self.tokens),
            rows.images,
            self.families[rows.images],
            image_of,
            None if self.teacher is None else self.teacher.similarities(rows),
        )
