"""The stored vectors and tokens of a collection's items by aligned encoders, for hierarchical search."""

import logging
from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from modalloy.align import AlignedEncoder
from modalloy.encoders import Encoder, Level, Modality
from modalloy.encoders.base import MODALITIES
from modalloy.errors import ConfigError
from modalloy.evaluation.folds import fold_slices
from modalloy.features import FeatureStore
from modalloy.fusion import FeatureSet, PairedFeatures
from modalloy.search import Fold, HierarchicalSearch, Member, Side, StoredTokens
from modalloy.workflow.features import Collection

_log = logging.getLogger(__name__)


class LocalFeatures:
    """Embeddings and tokens of the items that all the encoders could encode, at each level that they read.

    Args:
        encoders: aligned encoders with local branches.
        collection: features that aren't stored yet are extracted; where they are, no backbone is loaded.

    Raises:
        ConfigError: an encoder has no local branch.
    """

    def __init__(self, encoders: Sequence[Encoder], collection: Collection) -> None:
        self.encoders = [_with_branch(encoder) for encoder in encoders]
        self._stores = {
            modality: [_levels(each, collection, modality) for each in self.encoders] for modality in MODALITIES
        }

        def features(modality: Modality) -> FeatureSet:
            # An item without the tokens of a level is no more usable than one without an embedding.
            tokens = [store for stores in self._stores[modality] for store in stores.values()]
            return FeatureSet([*(collection.store(each, modality) for each in self.encoders), *tokens])

        self.paired = PairedFeatures(collection.manifest, features("image"), features("text"))

    def folds(self, split: str, fold_size: int | None, which: Sequence[int]) -> list[Fold]:
        """A split's usable items, as one fold or in several.

        Args:
            split: whose items.
            fold_size: images in a fold; None for all of them.
            which: the encoders whose average searches, by their places.

        Raises:
            ConfigError: `fold_size` is below 1.
            DataError: the split has no usable items, or they don't make whole folds.
        """
        items = self.paired.split(split)
        images, captions = len(items.image_rows), len(items.caption_rows)
        slices = [(slice(0, images), slice(0, captions))]
        if fold_size is not None:
            slices = fold_slices(items.caption_image, images, fold_size)
        return [
            Fold(
                HierarchicalSearch(
                    *(self._member(each, items.image_rows[of], items.caption_rows[to]) for each in which)
                ),
                items.caption_image[to] - of.start,
            )
            for of, to in slices
        ]

    def counts(self, split: str) -> dict[str, int]:
        """How many usable images and captions a split has; a line in the log says how many are left out.

        Raises:
            DataError: there are none.
        """
        items = self.paired.split(split)
        counts = {"images": len(items.image_rows), "captions": len(items.caption_rows)}
        every = self.paired.manifest.counts()[split]
        if counts != every:
            _log.warning(
                "left out of %s: %d images and %d captions without an embedding, or tokens of a level, of an encoder",
                split,
                *(every[name] - count for name, count in counts.items()),
            )
        return counts

    def _member(self, place: int, image_rows: Int[Tensor, " images"], caption_rows: Int[Tensor, " captions"]) -> Member:
        local = self.encoders[place].local
        assert local is not None

        def side(modality: Modality, features: FeatureSet, rows: Int[Tensor, " items"]) -> Side:
            readers = {level: store.tokens for level, store in self._stores[modality][place].items()}
            return Side(features.embeddings(place, rows), StoredTokens(local, modality, readers, rows))

        images = side("image", self.paired.image, image_rows)
        return Member(images, side("text", self.paired.text, caption_rows), local.config)


def _with_branch(encoder: Encoder) -> AlignedEncoder:
    if not isinstance(encoder, AlignedEncoder) or encoder.local is None:
        raise ConfigError(
            f"{encoder.spec} has no local branch to re-rank by; align one: modalloy align ... --align.local.dim 256"
        )
    return encoder


def _levels(encoder: AlignedEncoder, collection: Collection, modality: Modality) -> dict[Level, FeatureStore]:
    levels: list[Level] = ["high", "mid"] if modality in encoder.mid else ["high"]
    return {level: collection.backbone_store(encoder, modality, level) for level in levels}
