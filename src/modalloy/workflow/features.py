"""A collection and the stored features of its images and captions by several encoders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from modalloy.align import AlignedEncoder
from modalloy.data import Manifest
from modalloy.data.rand_augment import RandAugment
from modalloy.encoders import Encoder, Fingerprint, Level, Modality
from modalloy.errors import ConfigError, FeatureError, ModalloyError
from modalloy.features import FeatureStore, combine, derive, extract
from modalloy.features.devices import available_devices
from modalloy.features.extract import Runner
from modalloy.features.sources import AugmentedImages, Source, source_of
from modalloy.features.stored import StoredFeatures
from modalloy.fusion import Alloy, FeatureSet, PairedFeatures


@dataclass(frozen=True)
class ExtractConfig:
    """How features are extracted."""

    batch_size: int = 32
    """Items in a forward pass; it doesn't change the features beyond rounding."""
    workers: int | None = None
    """Threads that decode and preprocess, of each device; by default one a core, at most 4."""
    processes: bool = False
    """Processes instead of these threads: for an accelerator that is faster than one Python interpreter."""
    devices: tuple[str, ...] | Literal["auto"] = "auto"
    """Where the encoders run, such as [cuda:0, cuda:1], a process each; auto is all accelerators, else the CPU."""
    runner: Runner = "local"
    """local is this machine; ray is a Ray cluster, whose machines see the same paths (pip install 'modalloy[ray]')."""
    augmentations: int = 0
    """Augmented copies of each training image, of which the training of a fusion reads some."""
    augmentation: RandAugment = field(default_factory=RandAugment)
    """How they are augmented."""

    def __post_init__(self) -> None:
        if self.augmentations < 0:
            raise ConfigError(f"augmentations must be at least 0, got {self.augmentations}.")

    def chosen_devices(self) -> tuple[str, ...]:
        """The devices by name."""
        return available_devices() if self.devices == "auto" else self.devices


@dataclass(frozen=True)
class Collection:
    """A manifest and the folder of its features.

    Args:
        manifest: the images and captions.
        features: folder that holds, or will hold, the features of any number of encoders.
        extraction: how features that aren't there yet are extracted.
    """

    manifest: Manifest
    features: str | Path
    extraction: ExtractConfig = ExtractConfig()

    def store(self, encoder: Encoder, modality: Modality, copy: int | None = None) -> FeatureStore:
        """An encoder's features, extracted if they aren't there yet.

        An aligned encoder's embeddings are made from its backbone's features, and an alloy's from its encoders', so
        that each backbone runs once.

        Args:
            encoder: whose features.
            modality: of images or of captions.
            copy: of an augmented copy of the training images, from 0, instead.

        Raises:
            ConfigError: an augmented copy of captions is asked for.
            FeatureError: the folder holds other features under this encoder's name.
            DataError: there are no training images to augment.
        """
        if copy is not None and modality != "image":
            raise ConfigError(f"only images are augmented, got copy {copy} of {modality} features; leave it out.")
        if isinstance(encoder, StoredFeatures):
            return encoder.features_of(self.manifest, modality, copy)
        if isinstance(encoder, AlignedEncoder):
            base = self.backbone_store(encoder, modality, copy=copy)
            return derive(base, encoder, self.folder(encoder, modality, copy), partial(encoder.project, modality))
        if isinstance(encoder, Alloy):
            features = FeatureSet([self.store(each, modality, copy) for each in encoder.encoders])
            embed = partial(encoder.fuser.embed_rows, features)
            return combine(features.stores, encoder, self.folder(encoder, modality, copy), embed)
        return extract(
            encoder,
            modality,
            self.manifest,
            self.folder(encoder, modality, copy),
            batch_size=self.extraction.batch_size,
            workers=self.extraction.workers,
            processes=self.extraction.processes,
            devices=self.extraction.chosen_devices(),
            runner=self.extraction.runner,
            source=self.source(modality, copy),
            label=None if copy is None else f"{encoder.spec} image, copy {copy + 1} of {self.extraction.augmentations}",
        )

    def backbone_store(
        self, encoder: AlignedEncoder, modality: Modality, level: Level = "high", copy: int | None = None
    ) -> FeatureStore:
        """The features that an aligned encoder is made from: those of its backbone, or of the backbone's mid level.

        Where they are stored already, the backbone itself isn't needed.

        Args:
            encoder: whose backbone.
            modality: of images or of captions.
            level: "mid" for what its local branch reads beside them.
            copy: see `store`.

        Raises:
            ConfigError: the encoder reads no mid level of this modality.
            FeatureError, DataError: see `store`.
        """
        recorded = encoder.recorded(modality, level)
        folder = self._folder(recorded.spec, recorded.fingerprint, modality, copy)
        try:
            store = FeatureStore.open(folder, expect=recorded.fingerprint)
        except FeatureError:
            # Unfinished or damaged: what is missing is extracted.
            return self.store(encoder.backbone(modality, level), modality, copy)
        if store.collection != self.source(modality, copy).digest():
            # Of the collection, or of the augmentation, as it was: what changed is extracted.
            return self.store(encoder.backbone(modality, level), modality, copy)
        if not store.rejects():
            return store
        try:
            backbone = encoder.backbone(modality, level)
        except ModalloyError:
            return store
        # What was rejected is tried again.
        return self.store(backbone, modality, copy)

    def augmented(self, encoder: Encoder) -> list[FeatureStore]:
        """An encoder's features of as many augmented copies of the training images as `extraction` says.

        Of features that were made elsewhere there may be fewer.

        Raises:
            FeatureError: the folder holds other features under this encoder's name.
            DataError: there are no training images to augment.
        """
        return [self.store(encoder, "image", copy) for copy in range(self.copies(encoder))]

    def copies(self, encoder: Encoder) -> int:
        """How many stores `augmented` gives."""
        if isinstance(encoder, StoredFeatures):
            return min(encoder.copies, self.extraction.augmentations)
        if isinstance(encoder, Alloy):
            return min(map(self.copies, encoder.encoders))
        if isinstance(encoder, AlignedEncoder) and encoder.backbones["image"].spec.startswith("features:"):
            return self.copies(encoder.backbone("image"))
        return self.extraction.augmentations if "image" in encoder.modalities else 0

    def folder(self, encoder: Encoder, modality: Modality, copy: int | None = None) -> Path:
        """Where `store` keeps an encoder's features."""
        if isinstance(encoder, StoredFeatures):
            return encoder.store(modality, copy).folder
        return self._folder(encoder.spec, encoder.fingerprint(modality), modality, copy)

    def source(self, modality: Modality, copy: int | None = None) -> Source:
        """The items that a store of `store` is made of."""
        if copy is None:
            return source_of(self.manifest, modality)
        return AugmentedImages(self.manifest, self.extraction.augmentation, copy)

    def _folder(self, spec: str, fingerprint: Fingerprint, modality: Modality, copy: int | None) -> Path:
        kind, colon, _ = spec.partition(":")
        # A spec that names a folder doesn't say what is in it: a model fitted anew gets features of its own.
        name = f"{kind}-{fingerprint.digest[:12]}" if colon else spec
        folder = Path(self.features) / re.sub(r"[^A-Za-z0-9._@-]+", "-", name) / modality
        return folder if copy is None else folder / f"augment-{copy}"

    def paired(self, encoders: Sequence[Encoder], augmented: bool = False) -> PairedFeatures:
        """The image and text features of dual encoders.

        Args:
            encoders: the dual encoders.
            augmented: whether the image features come with their augmented copies, to train on.

        Raises:
            ConfigError: an encoder encodes one modality only.
        """
        for encoder in encoders:
            if len(encoder.modalities) < 2:
                raise ConfigError(
                    f"{encoder.name} encodes {encoder.modalities[0]}s only; align it with a backbone of the other "
                    "modality first (`modalloy align`)."
                )
        return PairedFeatures(
            self.manifest,
            FeatureSet(
                [self.store(encoder, "image") for encoder in encoders],
                [self.augmented(encoder) for encoder in encoders] if augmented else (),
            ),
            FeatureSet([self.store(encoder, "text") for encoder in encoders]),
        )
