"""What an alignment reads of stored features: embeddings in memory, tokens batch by batch."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.align import Tokens, compared_levels
from modalloy.data import Manifest
from modalloy.encoders import Level, Modality
from modalloy.errors import FeatureError
from modalloy.fusion import FeatureSet
from modalloy.training.batches import PairRows

_SAMPLE = 100
"""Images of a gallery whose tokens are compared with all of their captions'."""


class TokenBatch(NamedTuple):
    """Tokens of images and captions, of each level."""

    image: dict[Level, Tokens]
    text: dict[Level, Tokens]


class PairBatch(NamedTuple):
    """Backbone embeddings of matching images and texts, and the images' families."""

    image: Float[Tensor, "batch image_dim"]
    text: Float[Tensor, "batch text_dim"]
    families: Int[Tensor, "batch"]
    tokens: TokenBatch | None = None
    """Of the same items, where a local branch is trained."""


class Sample(NamedTuple):
    """A part of a gallery, small enough to compare all tokens of its images with all of its captions'."""

    tokens: TokenBatch
    caption_image: Int[Tensor, "captions"]


class SampleRows(NamedTuple):
    """Which images and captions of a gallery are a sample."""

    images: Int[Tensor, "images"]
    captions: Int[Tensor, "captions"]
    caption_image: Int[Tensor, "captions"]
    """For each of these captions the place of its image among these images."""


class Gallery(NamedTuple):
    """Backbone embeddings of images and their captions."""

    image: Float[Tensor, "images image_dim"]
    text: Float[Tensor, "captions text_dim"]
    caption_image: Int[Tensor, "captions"]
    sample: Sample | None = None


class Split:
    """A split's features without the rejected items.

    Args:
        features: of each modality the backbone's, and those of its mid level if there is one.
        manifest: the split.
        tokens: whether batches have tokens.

    Raises:
        FeatureError: a store lacks an item of the split, or tokens are wanted, and the images have only summary tokens.
    """

    def __init__(self, features: Mapping[Modality, FeatureSet], manifest: Manifest, tokens: bool) -> None:
        image, text = features["image"], features["text"]
        image_rows = image.stores[0].rows_of(manifest.image_ids)
        text_rows = text.stores[0].rows_of(manifest.caption_ids)
        kept_image = image.valid[image_rows]
        kept_text = text.valid[text_rows] & kept_image[manifest.caption_image]
        new_row = kept_image.cumsum(0) - 1
        self._features, self._tokens = features, tokens
        self._rows = {"image": image_rows[kept_image], "text": text_rows[kept_text]}
        self.kept: dict[Modality, Int[Tensor, " items"]] = {
            "image": kept_image.nonzero()[:, 0],
            "text": kept_text.nonzero()[:, 0],
        }
        """Where the split has the items that are left of it."""
        self.families = manifest.families[kept_image]
        self.gallery = Gallery(
            image.embeddings(0, self._rows["image"]),
            text.embeddings(0, self._rows["text"]),
            new_row[manifest.caption_image[kept_text]],
        )
        if tokens:
            self._require_regions()

    def __getitem__(self, rows: PairRows) -> PairBatch:
        image, text, _, _ = self.gallery
        return PairBatch(
            image[rows.images],
            text[rows.captions],
            self.families[rows.images],
            self._token_batch(rows.images, rows.captions) if self._tokens else None,
        )

    def validation(self) -> Gallery:
        """The whole split, and where batches have tokens a sample of images at even distances with theirs."""
        if not self._tokens:
            return self.gallery
        rows = self.sample()
        return self.gallery._replace(sample=Sample(self._token_batch(rows.images, rows.captions), rows.caption_image))

    def sample(self) -> SampleRows:
        """Images at even distances, with all of their captions."""
        caption_image = self.gallery.caption_image
        described = caption_image.unique()
        chosen = described[torch.linspace(0, len(described) - 1, min(_SAMPLE, len(described))).long()]
        captions = torch.isin(caption_image, chosen).nonzero()[:, 0]
        return SampleRows(chosen, captions, torch.searchsorted(chosen, caption_image[captions]))

    def _token_batch(self, images: Int[Tensor, "images"], captions: Int[Tensor, "captions"]) -> TokenBatch:
        return TokenBatch(self._levels("image", images), self._levels("text", captions))

    def _levels(self, modality: Modality, rows: Int[Tensor, "items"]) -> dict[Level, Tokens]:
        levels: tuple[Level, Level] = ("high", "mid")
        read = self._features[modality].batch(self._rows[modality][rows])
        padded = {level: (each.tokens, each.mask) for level, each in zip(levels, read, strict=False)}
        return compared_levels(modality, padded)

    def _require_regions(self) -> None:
        store, some = self._features["image"].stores[0], self._rows["image"][:_SAMPLE]
        if len(some) and int(store.tokens(some, limit=2)[1].max()) < 2:
            raise FeatureError(
                f"{store.spec} gives images a summary token alone, but a local branch compares regions with words; "
                "align without one (leave out `local.dim`), or take a backbone with more tokens."
            )
