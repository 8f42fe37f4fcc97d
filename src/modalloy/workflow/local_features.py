"""The stored vectors and mapped tokens of a collection's items by aligned encoders, for hierarchical search."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.align import AlignedEncoder, LocalLevel
from modalloy.encoders import Encoder, Level, Modality
from modalloy.encoders.base import MODALITIES
from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.folds import fold_slices
from modalloy.features import FeatureStore, derive_tokens
from modalloy.files import sha256_of_text
from modalloy.fusion import FeatureSet, PairedFeatures, SplitFeatures
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
        self._collection = collection
        self._stores = {
            modality: [_levels(each, collection, modality) for each in self.encoders] for modality in MODALITIES
        }

        def features(modality: Modality) -> FeatureSet:
            # An item without the tokens of a level is no more usable than one without an embedding.
            tokens = [store for stores in self._stores[modality] for store in stores.values()]
            return FeatureSet([*(collection.store(each, modality) for each in self.encoders), *tokens])

        self.paired = PairedFeatures(collection.manifest, features("image"), features("text"))

    def folds(self, split: str, fold_size: int | None, which: Sequence[int]) -> list[Fold]:
        """A split's usable items, as one fold or in several; their tokens are mapped the first time, and kept.

        Args:
            split: whose items.
            fold_size: images in a fold; None for all of them.
            which: the encoders whose average searches, by their places.

        Raises:
            ConfigError: `fold_size` is below 1.
            DataError: the split has no usable items, or they don't make whole folds.
            FeatureError: a token can't be kept, since it isn't finite in float16.
        """
        items = self.paired.split(split)
        images, captions = len(items.image_rows), len(items.caption_rows)
        members = [self._member(each, items) for each in which]
        slices = [(slice(0, images), slice(0, captions))]
        if fold_size is not None:
            try:
                slices = fold_slices(items.caption_image, images, fold_size)
            except DataError as error:
                # It may be the split to choose on, not the one that was asked for.
                raise DataError(f"{split}: {error}") from None
        return [
            Fold(
                HierarchicalSearch(*(member(of, to) for member in members)),
                items.caption_image[to] - of.start,
            )
            for of, to in slices
        ]

    def counts(self, split: str) -> dict[str, int]:
        """How many usable images and captions a split has; a line in the log says how many are left out.

        Raises:
            DataError: there are none.
        """
        counts = self.paired.split(split).counts()
        every = self.paired.manifest.counts()[split]
        if counts != every:
            _log.warning(
                "left out of %s: %d images and %d captions without an embedding, or tokens of a level, of an encoder",
                split,
                *(every[name] - count for name, count in counts.items()),
            )
        return counts

    def _member(self, place: int, items: SplitFeatures) -> Callable[[slice, slice], Member]:
        """What makes a member of some of a split's images and captions; what isn't mapped yet is mapped first."""
        encoder = self.encoders[place]
        config, device = encoder.branch().config, encoder.device
        all_rows: dict[Modality, Tensor] = {"image": items.image_rows, "text": items.caption_rows}
        readers = {
            modality: {
                level: self._mapped(store, LocalLevel(encoder, level), rows).tokens
                for level, store in self._stores[modality][place].items()
            }
            for modality, rows in all_rows.items()
        }

        def side(modality: Modality, vectors: Float[Tensor, "items dim"], places: slice) -> Side:
            rows = torch.arange(len(vectors))[places]
            return Side(vectors[places], StoredTokens(modality, readers[modality], rows, device))

        images = self.paired.image.embeddings(place, items.image_rows)
        captions = self.paired.text.embeddings(place, items.caption_rows)
        return lambda of, to: Member(side("image", images, of), side("text", captions, to), config)

    def _mapped(self, store: FeatureStore, level: LocalLevel, rows: Int[Tensor, " items"]) -> FeatureStore:
        # Splits can be drawn anew, and other encoders beside this one may leave out other items: none replaces another.
        items = sha256_of_text("\n".join(store.ids[row] for row in rows.tolist()))
        folder = self._collection.folder(level, store.modality) / f"items-{items[:12]}"
        return derive_tokens(store, rows, level, folder, partial(level.project, store.modality))


def _with_branch(encoder: Encoder) -> AlignedEncoder:
    if not isinstance(encoder, AlignedEncoder) or encoder.local is None:
        raise ConfigError(
            f"{encoder.spec} has no local branch to re-rank by; align one: modalloy align ... --align.local.dim 256"
        )
    return encoder


def _levels(encoder: AlignedEncoder, collection: Collection, modality: Modality) -> dict[Level, FeatureStore]:
    levels: list[Level] = ["high", "mid"] if modality in encoder.mid else ["high"]
    return {level: collection.backbone_store(encoder, modality, level) for level in levels}
