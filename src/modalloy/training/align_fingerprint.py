"""What an alignment's result depends on, by which a finished or begun one is known again."""

from collections.abc import Mapping
from dataclasses import asdict

from modalloy.data import Manifest
from modalloy.encoders import Modality
from modalloy.encoders.base import sha256_of_settings
from modalloy.features import FeatureStore
from modalloy.training.align_config import AlignConfig

# To be raised when a change of the code changes what a training gives, so that no older result passes for it.
_RECIPE = 1

Stores = Mapping[Modality, FeatureStore]
"""Stored features of each modality's backbone, or of its mid level."""


def align_settings(config: AlignConfig) -> dict:
    """The configuration in plain values, without what it makes no use of and earlier versions didn't know."""
    settings = asdict(config)
    if config.local.dim is None:
        del settings["local"]
    if config.unfreeze.epoch is None:
        del settings["unfreeze"]
    return settings


def deciding_settings(config: AlignConfig) -> dict:
    """`align_settings` without what changes no result, and as they were before there was a choice of the split."""
    settings = align_settings(config)
    if config.split == "train":
        del settings["split"]
    if "unfreeze" in settings:
        settings["unfreeze"] = config.unfreeze.deciding()
    return settings


def align_fingerprint(config: AlignConfig, stores: Stores, manifest: Manifest, mid: Stores | None = None) -> str:
    """SHA-256 of all that decides the result."""
    levels: dict[str, FeatureStore] = {modality: store for modality, store in stores.items()}
    levels |= {f"mid {modality}": store for modality, store in (mid or {}).items()}
    return sha256_of_settings(
        {
            "recipe": _RECIPE,
            "config": deciding_settings(config),
            "features": {level: store.fingerprint.digest for level, store in levels.items()},
            "rejects": {level: [r["id"] for r in store.rejects()] for level, store in levels.items()},
            "collection": manifest.fingerprint,
            "splits": [item.split for item in manifest],
            "families": manifest.families.tolist(),
        }
    )
