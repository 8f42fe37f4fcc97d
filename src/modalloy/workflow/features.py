"""A collection and the stored features of its images and captions by several encoders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modalloy.align import AlignedEncoder
from modalloy.data import Manifest
from modalloy.encoders import Encoder, Modality, load_encoder
from modalloy.errors import ConfigError
from modalloy.features import FeatureStore, derive, extract
from modalloy.fusion import FeatureSet, PairedFeatures


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

        An aligned encoder's embeddings are made from its backbone's features, so that a backbone runs once.

        Raises:
            FeatureError: the folder holds other features under this encoder's name.
        """
        folder = Path(self.features) / _folder_name(encoder, modality) / modality
        if isinstance(encoder, AlignedEncoder):
            # The backbone itself isn't needed where its features are stored already.
            recorded = encoder.backbones[modality]
            base_folder = Path(self.features) / _slug(recorded.spec) / modality
            base = (
                FeatureStore.open(base_folder, expect=recorded.fingerprint, collection=self.manifest)
                if (base_folder / "manifest.json").exists()
                else self.store(encoder.backbone(modality), modality)
            )
            return derive(base, encoder, folder, partial(encoder.project, modality))
        return extract(
            encoder,
            modality,
            self.manifest,
            folder,
            batch_size=self.extraction.batch_size,
            workers=self.extraction.workers,
        )

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


def load_encoders(specs: Sequence[str]) -> list[Encoder]:
    """Loads each spec, as `load_encoder` does."""
    return [load_encoder(spec) for spec in specs]


def _folder_name(encoder: Encoder, modality: Modality) -> str:
    kind, colon, _ = encoder.spec.partition(":")
    # A spec that names a folder doesn't say what is in it: a model fitted anew gets features of its own.
    return f"{kind}-{encoder.fingerprint(modality).digest[:12]}" if colon else _slug(encoder.spec)


def _slug(spec: str) -> str:
    return re.sub(r"[^A-Za-z0-9._@-]+", "-", spec)
