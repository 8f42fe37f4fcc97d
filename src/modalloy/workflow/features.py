"""A collection and the stored features of its images and captions by several encoders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modalloy.align import AlignedEncoder
from modalloy.data import Manifest
from modalloy.encoders import Encoder, Fingerprint, Modality
from modalloy.errors import ConfigError, FeatureError
from modalloy.features import FeatureStore, combine, derive, extract
from modalloy.fusion import Alloy, FeatureSet, PairedFeatures


@dataclass(frozen=True)
class ExtractConfig:
    """How features are extracted."""

    batch_size: int = 32
    """Items in a forward pass; it doesn't change the features beyond rounding."""
    workers: int | None = None
    """Threads that decode and preprocess; by default one a core, at most 4."""


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

    def store(self, encoder: Encoder, modality: Modality) -> FeatureStore:
        """An encoder's features, extracted if they aren't there yet.

        An aligned encoder's embeddings are made from its backbone's features, and an alloy's from its encoders', so
        that each backbone runs once.

        Raises:
            FeatureError: the folder holds other features under this encoder's name.
        """
        if isinstance(encoder, AlignedEncoder):
            base = self._backbone_store(encoder, modality)
            return derive(base, encoder, self.folder(encoder, modality), partial(encoder.project, modality))
        if isinstance(encoder, Alloy):
            features = FeatureSet([self.store(each, modality) for each in encoder.encoders])
            embed = partial(encoder.fuser.embed_rows, features)
            return combine(features.stores, encoder, self.folder(encoder, modality), embed)
        return extract(
            encoder,
            modality,
            self.manifest,
            self.folder(encoder, modality),
            batch_size=self.extraction.batch_size,
            workers=self.extraction.workers,
        )

    def folder(self, encoder: Encoder, modality: Modality) -> Path:
        """Where `store` keeps an encoder's features."""
        return self._folder(encoder.spec, encoder.fingerprint(modality), modality)

    def _folder(self, spec: str, fingerprint: Fingerprint, modality: Modality) -> Path:
        kind, colon, _ = spec.partition(":")
        # A spec that names a folder doesn't say what is in it: a model fitted anew gets features of its own.
        name = f"{kind}-{fingerprint.digest[:12]}" if colon else spec
        return Path(self.features) / re.sub(r"[^A-Za-z0-9._@-]+", "-", name) / modality

    def _backbone_store(self, encoder: AlignedEncoder, modality: Modality) -> FeatureStore:
        recorded = encoder.backbones[modality]
        folder = self._folder(recorded.spec, recorded.fingerprint, modality)
        try:
            # The backbone itself isn't needed where its features are stored already.
            return FeatureStore.open(folder, expect=recorded.fingerprint, collection=self.manifest)
        except FeatureError:
            # Unfinished, damaged, or of the collection as it was: what is missing is extracted.
            return self.store(encoder.backbone(modality), modality)

    def paired(self, encoders: Sequence[Encoder]) -> PairedFeatures:
        """The image and text features of dual encoders.

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
            FeatureSet([self.store(encoder, "image") for encoder in encoders]),
            FeatureSet([self.store(encoder, "text") for encoder in encoders]),
        )
