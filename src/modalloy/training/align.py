"""Training of HACAN's global heads, and of its local branch, on stored features of frozen backbones."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from modalloy.align import AlignedEncoder, Backbone, LocalConfig
from modalloy.align.encoder import FORMAT, MAKER
from modalloy.data import Manifest
from modalloy.encoders import Modality
from modalloy.encoders.base import sha256_of_settings
from modalloy.encoders.checkpoint import read_config
from modalloy.errors import ConfigError
from modalloy.features import FeatureStore
from modalloy.fusion import FeatureSet
from modalloy.training.align_batches import Split
from modalloy.training.align_config import AlignConfig
from modalloy.training.align_module import Alignment
from modalloy.training.batches import PairSampler, pair_loader
from modalloy.training.trainer import fit

# To be raised when a change of the code changes what a training gives, so that no older result passes for it.
_RECIPE = 1

Stores = Mapping[Modality, FeatureStore]


def fit_aligner(
    config: AlignConfig,
    image_store: FeatureStore,
    text_store: FeatureStore,
    manifest: Manifest,
    folder: str | Path,
    *,
    mid: Stores | None = None,
    name: str | None = None,
    accelerator: str = "auto",
) -> AlignedEncoder:
    """Aligns two frozen backbones by their stored features, or loads the result if `folder` holds it.

    Trains on the configuration's split and logs the recall on "val" after each epoch to `metrics.jsonl`, and with a
    local branch that of its scores on a sample of 100 images. Killed at any moment and called again, it goes on from
    the last finished epoch; on a CPU the result is the same. Rejected items are left out.

    Args:
        config: the heads, the local branch, the loss and the schedule.
        image_store: the image backbone's features.
        text_store: the text backbone's features.
        manifest: the collection that both stores hold.
        folder: where the encoder, its checkpoints and its metrics go.
        mid: the features of the backbones' mid levels, for a local branch; terms that read another are left out.
        name: the encoder's name, for people.
        accelerator: as Lightning names it: "auto", "cpu", "gpu".

    Returns:
        The encoder, saved in `folder`, on the CPU.

    Raises:
        ConfigError: a store is of the wrong modality.
        DataError: the manifest has fewer than 2 images with captions to train on.
        FeatureError: a store lacks an item of the manifest, a mid level's holds other items than its backbone's, or a
            local branch is wanted, and the images have only summary tokens.
        CheckpointError: the finished encoder in `folder` is damaged.
    """
    stores: dict[Modality, FeatureStore] = {"image": image_store, "text": text_store}
    mid = {} if config.local.dim is None else dict(mid or {})
    for modality, store in (*stores.items(), *mid.items()):
        if store.modality != modality:
            raise ConfigError(f"The {modality} store holds {store.modality} features ({store.spec}).")
    folder = Path(folder)
    fingerprint = _fingerprint(config, stores, manifest, mid)
    name = name or f"{image_store.spec} + {text_store.spec}"
    if _finished(folder, fingerprint):
        encoder = AlignedEncoder.from_pretrained(folder)
        encoder.name = name
        return encoder
    module = _trained(config, stores, mid, manifest, folder, f"aligning {name}", fingerprint, accelerator)
    encoder = AlignedEncoder(
        _backbones(stores),
        {"image": module.image_head, "text": module.text_head},
        name=name,
        training={"config": _settings(config), "fingerprint": fingerprint},
        local=module.local,
        mid=_backbones(mid),
    )
    encoder.save(folder)
    return encoder


def _trained(
    config: AlignConfig,
    stores: Stores,
    mid: Stores,
    manifest: Manifest,
    folder: Path,
    description: str,
    fingerprint: str,
    accelerator: str,
) -> Alignment:
    features = {each: FeatureSet([store, *([mid[each]] if each in mid else [])]) for each, store in stores.items()}
    train, val = (
        Split(features, manifest.split(split), config.local.dim is not None) for split in (config.split, "val")
    )
    sampler = PairSampler(
        train.gallery.caption_image,
        batch_size=config.batch_size,
        seed=config.seed,
        all_captions=config.all_captions,
    )
    local = _local_config(config, stores, mid)
    module = Alignment(config, stores["image"].dim, stores["text"].dim, steps_per_epoch=len(sampler), local=local)
    if config.center:
        module.image_head.center.copy_(train.gallery.image.mean(dim=0))
        module.text_head.center.copy_(train.gallery.text.mean(dim=0))
    fit(
        module,
        pair_loader(train, sampler),
        folder,
        epochs=config.epochs,
        seed=config.seed,
        description=description,
        fingerprint=fingerprint,
        validation=_validation(val),
        accelerator=accelerator,
    )
    return module.cpu()


def _local_config(config: AlignConfig, stores: Stores, mid: Stores) -> LocalConfig | None:
    if config.local.dim is None:
        return None
    return LocalConfig(
        image_high=stores["image"].width,
        image_mid=mid["image"].width if "image" in mid else None,
        text_high=stores["text"].width,
        text_mid=mid["text"].width if "text" in mid else None,
        dim=config.local.dim,
        attention=config.local.attention(),
    )


def _backbones(stores: Stores) -> dict[Modality, Backbone]:
    return {each: Backbone(store.spec, store.fingerprint, store.width) for each, store in stores.items()}


def _validation(val: Split) -> DataLoader | None:
    """The whole split as one batch; None where it has no captions."""
    if not len(val.gallery.text):
        return None
    return DataLoader([val.validation()], batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]


def _finished(folder: Path, fingerprint: str) -> bool:
    if not (folder / "config.json").exists():
        return False
    return read_config(folder, FORMAT, MAKER).get("training", {}).get("fingerprint") == fingerprint


def _settings(config: AlignConfig) -> dict:
    """The configuration in plain values, as it was before there was a local branch where it has none."""
    settings = asdict(config)
    if config.local.dim is None:
        del settings["local"]
    return settings


def _fingerprint(config: AlignConfig, stores: Stores, manifest: Manifest, mid: Stores | None = None) -> str:
    """SHA-256 of all that decides the result."""
    settings = _settings(config)
    # Alignments from before there was a choice stay valid.
    if config.split == "train":
        del settings["split"]
    levels: dict[str, FeatureStore] = {modality: store for modality, store in stores.items()}
    levels |= {f"mid {modality}": store for modality, store in (mid or {}).items()}
    return sha256_of_settings(
        {
            "recipe": _RECIPE,
            "config": settings,
            "features": {level: store.fingerprint.digest for level, store in levels.items()},
            "rejects": {level: [r["id"] for r in store.rejects()] for level, store in levels.items()},
            "collection": manifest.fingerprint,
            "splits": [item.split for item in manifest],
            "families": manifest.families.tolist(),
        }
    )
