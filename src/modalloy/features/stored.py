"""Features that were made elsewhere, as an encoder whose model isn't here."""

import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, NoReturn, Self

from PIL import Image

from modalloy.data.manifest import Manifest
from modalloy.encoders.base import MODALITIES, Encoded, Encoder, Fingerprint, Modality
from modalloy.errors import ConfigError, FeatureError
from modalloy.features.sources import source_of
from modalloy.features.store import FeatureStore

_USE_THE_MANIFEST = "use the collection that they were made from: an import writes its manifest.jsonl beside them"
_log = logging.getLogger(__name__)


class StoredFeatures(Encoder):
    """An encoder of which there are only the features of some items: it can be aligned, fused and evaluated on those.

    Args:
        folder: holds the feature store "image", "text" or both.
        name: for people; by default what the features' fingerprint says.

    Raises:
        ConfigError: the folder holds no features, or those of two encoders that have no common space.
        FeatureError: a store is damaged, or holds the other modality.

    >>> import tempfile
    >>> from modalloy.data.manifest import Item, Manifest
    >>> from modalloy.encoders.registry import load_encoder
    >>> from modalloy.features.extract import extract
    >>> item = Item("phone", "phone.png", "0" * 64, "test", ("a red telephone",))
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = extract(load_encoder("minilm"), "text", Manifest(folder, (item,)), folder / "text", progress=False)
    >>> stored = StoredFeatures(folder)
    >>> stored.modalities, stored.dim("text"), stored.name
    (('text',), 384, 'minilm')
    """

    def __init__(self, folder: str | Path, name: str | None = None) -> None:
        folder = Path(folder).resolve()
        self.folder = folder
        # Absolute, so that the spec still names the folder after the working directory has changed.
        self.spec = f"features:{folder}"
        self._stores = {each: self._open(each) for each in MODALITIES if (folder / each).is_dir()}
        self.modalities = tuple(self._stores)
        if not self.modalities:
            raise ConfigError(
                f"{folder} holds no features: a feature store in its folder image, text or both was expected; "
                "name the folder that an import wrote."
            )
        dims = {modality: store.dim for modality, store in self._stores.items()}
        if len(set(dims.values())) > 1:
            raise ConfigError(
                f"{folder} holds image embeddings of length {dims['image']} and text embeddings of length "
                f"{dims['text']}, which have no common space; put the two into folders of their own and align them."
            )
        first = self._stores[self.modalities[0]].fingerprint.name
        self.name = name or first.removesuffix(f" {self.modalities[0]}")

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """What the encoder spec "features:FOLDER" stands for."""
        return cls(folder)

    @property
    def copies(self) -> int:
        """How many augmented copies of images there are."""
        return next(copy for copy in count() if not self._folder("image", copy).is_dir())

    def store(self, modality: Modality, copy: int | None = None) -> FeatureStore:
        """The features themselves.

        Args:
            modality: of images or of captions.
            copy: of an augmented copy of the images, from 0, instead.

        Raises:
            ConfigError: there are none of this modality.
            FeatureError: there is no such copy.
        """
        self._require(modality)
        return self._stores[modality] if copy is None else self._open(modality, copy)

    def features_of(self, collection: Manifest, modality: Modality, copy: int | None = None) -> FeatureStore:
        """The features, checked to be those of a collection's items in their order.

        Args:
            collection: the items.
            modality: of its images or of its captions.
            copy: of an augmented copy of the images, from 0, instead; a copy may lack images.

        Raises:
            FeatureError: they are of other items, or of captions with other words.
        """
        store, source = self.store(modality, copy), source_of(collection, modality)
        if copy is not None:
            surplus = sorted(set(store.ids) - set(source.ids))
            if surplus:
                raise FeatureError(
                    f"{store.folder} holds {len(surplus)} images that the collection lacks{_of(surplus)}."
                )
            return store
        if list(store.ids) != list(source.ids):
            raise FeatureError(f"{store.folder} {_difference(store.ids, source.ids, modality)}; {_USE_THE_MANIFEST}.")
        if store.collection != source.digest():
            if modality == "text":
                raise FeatureError(
                    f"{store.folder} holds features of captions with other words than the collection has "
                    f"under the same ids; {_USE_THE_MANIFEST}."
                )
            # Features may be imported without pictures, so that only the ids can agree.
            _log.warning("%s: the pictures can't be told to be those of the collection; their ids agree.", store.folder)
        return store

    def fingerprint(self, modality: Modality) -> Fingerprint:
        """What the store says of the encoder that made the features."""
        return self.store(modality).fingerprint

    def dim(self, modality: Modality) -> int:
        """Length of a stored embedding."""
        return self.store(modality).dim

    def width(self, modality: Modality) -> int:
        """Length of a stored token."""
        return self.store(modality).width

    def preprocess(self, modality: Modality, item: Image.Image | str) -> NoReturn:
        """There is no model to make an item ready for.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(self._no_model(modality))

    def forward(self, modality: Modality, prepared: Sequence[Any]) -> Encoded:
        """There is no model to run.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(self._no_model(modality))

    def _no_model(self, modality: Modality) -> str:
        return (
            f"{self.name}: a new {modality} can't be encoded, since {self.spec} are features that were made elsewhere. "
            "Fuse, evaluate or look at the stored items, or give the encoder itself in place of its features."
        )

    def _folder(self, modality: Modality, copy: int | None) -> Path:
        folder = self.folder / modality
        return folder if copy is None else folder / f"augment-{copy}"

    def _open(self, modality: Modality, copy: int | None = None) -> FeatureStore:
        folder = self._folder(modality, copy)
        store = FeatureStore.open(folder)
        if store.modality != modality:
            raise FeatureError(f"{folder} should hold {modality} features, but holds {store.modality} features.")
        # By this spec what is aligned on the features finds them, wherever they have been moved since.
        return store.under_spec(self.spec)


def _difference(held: Sequence[str], wanted: Sequence[str], modality: Modality) -> str:
    """How the ids of a store differ from a collection's."""
    missing, surplus = sorted(set(wanted) - set(held)), sorted(set(held) - set(wanted))
    if not missing and not surplus:
        return f"holds the features of the collection's {modality}s in another order"
    parts = [f"lacks {len(missing)} of {len(wanted)} {modality}s{_of(missing)}"] if missing else []
    parts += [f"holds {len(surplus)} that the collection lacks{_of(surplus)}"] if surplus else []
    return " and ".join(parts)


def _of(ids: Sequence[str]) -> str:
    return f" ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
