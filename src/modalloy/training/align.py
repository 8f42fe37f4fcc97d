"""Training of HACAN's global heads, and of its local branch, on stored features; then perhaps of the backbones, too."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from modalloy.align import AlignedEncoder, Backbone, LocalConfig
from modalloy.align.encoder import FORMAT, MAKER
from modalloy.data import Manifest
from modalloy.encoders import Encoder, Modality, load_encoder
from modalloy.encoders.checkpoint import read_config
from modalloy.encoders.mid import MidLevel
from modalloy.encoders.tuned import TunedEncoder
from modalloy.errors import ConfigError
from modalloy.features import FeatureStore
from modalloy.features.preparation import explained_death
from modalloy.fusion import FeatureSet
from modalloy.training.align_batches import Split
from modalloy.training.align_config import AlignConfig, UnfreezeConfig
from modalloy.training.align_fingerprint import Stores, align_fingerprint, align_settings
from modalloy.training.align_module import Alignment
from modalloy.training.align_pictures import PictureSplit
from modalloy.training.batches import PairSampler, pair_loader
from modalloy.training.early_stopping import Metrics
from modalloy.training.trainer import fit
from modalloy.training.unfrozen_module import UnfrozenAlignment, trainable

_log = logging.getLogger(__name__)


def fit_aligner(
    config: AlignConfig,
    image_store: FeatureStore,
    text_store: FeatureStore,
    manifest: Manifest,
    folder: str | Path,
    *,
    mid: Stores | None = None,
    encoders: Mapping[Modality, Encoder] | None = None,
    name: str | None = None,
    accelerator: str = "auto",
) -> AlignedEncoder:
    """Aligns two backbones, frozen by their stored features, or loads the result if `folder` holds it.

    Trains on the configuration's split and logs the recall on "val" after each epoch to `metrics.jsonl`, and with a
    local branch that of its scores on a sample of 100 images. Killed at any moment and called again, it goes on from
    the last finished epoch; on a CPU the result is the same. Rejected items are left out.

    From `config.unfreeze.epoch` on the backbones are trained, too, from the images; the epochs before lie in the
    folder's `frozen`. The trained backbones are saved in its `image` and `text`.

    Args:
        config: the heads, the local branch, the loss and the schedule.
        image_store: the image backbone's features.
        text_store: the text backbone's features.
        manifest: the collection that both stores hold.
        folder: where the encoder, its checkpoints and its metrics go.
        mid: the features of the backbones' mid levels, for a local branch; terms that read another are left out.
        encoders: the backbones, where they are trained; that is done in place, so load them anew for other uses.
        name: the encoder's name, for people.
        accelerator: as Lightning names it: "auto", "cpu", "gpu".

    Returns:
        The encoder, saved in `folder`, on the CPU.

    Raises:
        ConfigError: a store is of the wrong modality, or the backbones are to be trained, but one is missing, another
            than that of the features, or can't be trained.
        DataError: the manifest has fewer than 2 images with captions to train on, or none of the pictures that the
            backbones are to be trained on can be read.
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
    fingerprint = align_fingerprint(config, stores, manifest, mid)
    name = name or f"{image_store.spec} + {text_store.spec}"
    if _finished(folder, fingerprint):
        encoder = AlignedEncoder.from_pretrained(folder)
        encoder.name = name
        return encoder
    if (folder / "config.json").exists():
        _log.warning("%s holds an alignment with other settings or features, which this one replaces", folder)
    work = _Work(config, stores, mid, manifest, folder, f"aligning {name}", accelerator)
    if config.unfreeze.epoch is None:
        module, _ = work.train_frozen(folder, config.epochs, fingerprint)
        backbones, mid_backbones = _backbones(stores), _backbones(mid)
    else:
        encoders = _required(encoders, stores)
        module = work.train_all(encoders, fingerprint)
        backbones, mid_backbones = _saved(encoders, mid, folder)
    encoder = AlignedEncoder(
        backbones,
        {"image": module.image_head, "text": module.text_head},
        name=name,
        training={"config": align_settings(config), "fingerprint": fingerprint},
        local=module.local,
        mid=mid_backbones,
    )
    encoder.save(folder)
    return encoder


@dataclass(frozen=True)
class _Work:
    """One alignment: what it reads, and where it goes."""

    config: AlignConfig
    stores: Stores
    mid: Stores
    manifest: Manifest
    folder: Path
    description: str
    accelerator: str

    @cached_property
    def train(self) -> Split:
        return self._split(self.config.split)

    @cached_property
    def val(self) -> Split:
        return self._split("val")

    def _split(self, split: str) -> Split:
        features = {
            each: FeatureSet([store, *([self.mid[each]] if each in self.mid else [])])
            for each, store in self.stores.items()
        }
        return Split(features, self.manifest.split(split), self.config.local.dim is not None)

    def train_frozen(self, folder: Path, epochs: int, fingerprint: str) -> tuple[Alignment, list[Metrics]]:
        """Trains the heads and the local branch for so many epochs, perhaps none, on stored features."""
        config, train, val, sampler = self.config, self.train, self.val, self._sampler()
        local = _local_config(config, self.stores, self.mid)
        _log.info("%s: %s", self.description, _losses(local))
        dims = self.stores["image"].dim, self.stores["text"].dim
        module = Alignment(config, *dims, steps_per_epoch=len(sampler), local=local)
        if config.center:
            module.image_head.center.copy_(train.gallery.image.mean(dim=0))
            module.text_head.center.copy_(train.gallery.text.mean(dim=0))
        if not epochs:
            return module, []
        metrics = fit(
            module,
            pair_loader(train, sampler),
            folder,
            epochs=epochs,
            seed=config.seed,
            description=self.description,
            fingerprint=fingerprint,
            validation=_validation(val),
            accelerator=self.accelerator,
        )
        return module.cpu(), metrics

    def train_all(self, encoders: Mapping[Modality, Encoder], fingerprint: str) -> UnfrozenAlignment:
        """Trains on stored features first, then the backbones, too."""
        config, unfreeze = self.config, self.config.unfreeze
        assert unfreeze.epoch is not None
        frozen_part = replace(config, unfreeze=UnfreezeConfig(epoch=unfreeze.epoch))
        frozen, metrics = self.train_frozen(
            self.folder / "frozen",
            unfreeze.epoch - 1,
            align_fingerprint(frozen_part, self.stores, self.manifest, self.mid),
        )
        train, val = (
            PictureSplit(encoders, self.manifest.split(split), stored)
            for split, stored in ((config.split, self.train), ("val", self.val))
        )
        module = UnfrozenAlignment(frozen, encoders, train, val)
        with explained_death("with fewer workers (unfreeze.workers)"):
            fit(
                module,
                train.training(self._sampler(), unfreeze.views(config.seed), unfreeze.workers),
                self.folder,
                epochs=config.epochs,
                seed=config.seed,
                description=f"{self.description}, unfrozen",
                fingerprint=fingerprint,
                validation=val.validation(unfreeze.workers),
                precision=unfreeze.precision,
                accelerator=self.accelerator,
                before=metrics,
            )
        for encoder in encoders.values():
            encoder.to("cpu")
        module.networks.requires_grad_(False).eval()
        return module.cpu()

    def _sampler(self) -> PairSampler:
        return PairSampler(
            self.train.gallery.caption_image,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            all_captions=self.config.all_captions,
        )


def _required(encoders: Mapping[Modality, Encoder] | None, stores: Stores) -> dict[Modality, Encoder]:
    """The backbones, if they can be trained and made the stored features."""
    given = dict(encoders or {})
    for modality, store in stores.items():
        if modality not in given:
            raise ConfigError(
                f"unfreeze.epoch trains the backbones, but that of {modality}s ({store.spec}) isn't given; pass it in "
                "`encoders`, or leave out unfreeze.epoch."
            )
        if given[modality].fingerprint(modality) != store.fingerprint:
            raise ConfigError(
                f"the {modality} backbone to train, {given[modality].spec}, isn't the one whose features are stored, "
                f"{store.spec}; pass the same."
            )
    trainable(given)
    return given


def _losses(local: LocalConfig | None) -> str:
    """What is trained, for people."""
    if local is None:
        return "the global loss"
    terms = (f"{'focal ' if term.focal else ''}({term.image}, {term.text})" for term in local.terms)
    return f"the global loss and the local terms (image level, text level) {', '.join(terms)}"


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


def _saved(
    encoders: Mapping[Modality, Encoder], mid: Stores, folder: Path
) -> tuple[dict[Modality, Backbone], dict[Modality, Backbone]]:
    """Saves the trained backbones; what gives both token levels from now on."""
    high: dict[Modality, Backbone] = {}
    earlier: dict[Modality, Backbone] = {}
    for modality, encoder in encoders.items():
        TunedEncoder.save(encoder, folder / modality)
        tuned = load_encoder(f"tuned:{folder / modality}")
        high[modality] = Backbone.of(tuned, modality)
        if modality in mid:
            earlier[modality] = Backbone.of(MidLevel(tuned), modality)
    return high, earlier


def _validation(val: Split) -> DataLoader | None:
    """The whole split as one batch; None where it has no captions."""
    if not len(val.gallery.text):
        return None
    return DataLoader([val.validation()], batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]


def _finished(folder: Path, fingerprint: str) -> bool:
    if not (folder / "config.json").exists():
        return False
    return read_config(folder, FORMAT, MAKER).get("training", {}).get("fingerprint") == fingerprint
