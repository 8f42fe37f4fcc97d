"""A collection's image and caption features by several encoders, and the splits of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.data import Manifest
from modalloy.errors import DataError, FeatureError
from modalloy.evaluation import EmbeddingScores, metrics, rank_queries
from modalloy.fusion.base import Fuser
from modalloy.fusion.feature_set import FeatureSet


@dataclass(frozen=True)
class PairedFeatures:
    """The features of a collection's images and captions by the same encoders, row-aligned with its manifest.

    Raises:
        FeatureError: the features are of other items than the manifest's, or of the other modality.
    """

    manifest: Manifest
    image: FeatureSet
    text: FeatureSet

    def __post_init__(self) -> None:
        for modality, features, ids in (
            ("image", self.image, self.manifest.image_ids),
            ("text", self.text, self.manifest.caption_ids),
        ):
            if features.modality != modality:
                raise FeatureError(f"expected {modality} features, got {features.modality} features; swap the two.")
            if list(features.ids) != ids:
                raise FeatureError(
                    f"the {modality} features aren't of the manifest's items in their order ({len(features)} rows, "
                    f"{len(ids)} in the manifest); extract them from this manifest."
                )

    def _rejected(self) -> str:
        stores = [store for features in (self.image, self.text) for store in features.stores]
        rejects = {reject["id"]: reject["reason"] for store in stores for reject in store.rejects()}
        id, reason = next(iter(rejects.items()), ("", ""))
        return f"; {len(rejects):,} items were rejected, first {id}: {reason}" if rejects else ""

    def split(self, *names: str) -> "SplitFeatures":
        """The items of the given splits that every encoder could encode.

        Raises:
            DataError: there are none.
        """
        wanted = torch.tensor([item.split in names for item in self.manifest], dtype=torch.bool)
        image_mask = wanted & self.image.valid
        caption_image = self.manifest.caption_image
        caption_mask = image_mask[caption_image] & self.text.valid
        image_rows, caption_rows = image_mask.nonzero().squeeze(1), caption_mask.nonzero().squeeze(1)
        if not len(caption_rows):
            raise DataError(
                f"the collection has no usable captioned image in {' or '.join(names)}; "
                f"its counts are {self.manifest.counts()}{self._rejected()}."
            )
        position = torch.full((len(image_mask),), -1)
        position[image_rows] = torch.arange(len(image_rows))
        return SplitFeatures(self, image_rows, caption_rows, position[caption_image[caption_rows]])


@dataclass(frozen=True)
class SplitFeatures:
    """The usable items of some splits.

    Attributes:
        paired: the features of the whole collection.
        image_rows: rows of the images in the manifest.
        caption_rows: rows of the captions among all captions of the manifest.
        caption_image: for each of those captions, the position of its image in `image_rows`.
    """

    paired: PairedFeatures
    image_rows: Int[Tensor, " images"]
    caption_rows: Int[Tensor, " captions"]
    caption_image: Int[Tensor, " captions"]

    def counts(self) -> dict[str, int]:
        """How many images and captions there are."""
        return {"images": len(self.image_rows), "captions": len(self.caption_rows)}

    def vectors(self, fuser: Fuser) -> tuple[Float[Tensor, "images dim"], Float[Tensor, "captions dim"]]:
        """A fuser's retrieval vectors of these images and captions."""
        images = fuser.embed_rows(self.paired.image, self.image_rows)
        return images, fuser.embed_rows(self.paired.text, self.caption_rows)

    def scores(self, fuser: Fuser) -> EmbeddingScores:
        """The similarities of these images and captions by a fuser's retrieval vectors."""
        return EmbeddingScores(*self.vectors(fuser))

    def rsum(self, fuser: Fuser) -> float:
        """The RSum of a fuser's retrieval vectors, in percentage points."""
        return metrics(rank_queries(self.scores(fuser), self.caption_image)).rsum

    def input_scores(self) -> list[EmbeddingScores]:
        """The similarities by each encoder's own embeddings."""
        return [
            EmbeddingScores(
                self.paired.image.embeddings(encoder, self.image_rows),
                self.paired.text.embeddings(encoder, self.caption_rows),
            )
            for encoder in range(len(self.paired.image.stores))
        ]
