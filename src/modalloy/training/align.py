"""Training of HACAN's global heads on stored features of frozen backbones."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from modalloy.align import AlignedEncoder, Backbone, GlobalHead, HeadConfig, info_nce, same_item
from modalloy.align.encoder import FORMAT, MAKER
from modalloy.align.losses import LOSSES, LossName
from modalloy.data import Manifest
from modalloy.encoders import Modality
from modalloy.encoders.base import sha256_of_settings
from modalloy.encoders.checkpoint import read_config
from modalloy.errors import ConfigError
from modalloy.evaluation import EmbeddingScores, metrics, rank_queries
from modalloy.features import FeatureStore
from modalloy.training.batches import PairRows, PairSampler, pair_loader
from modalloy.training.schedules import cosine, per_step, step_decay
from modalloy.training.trainer import fit

_STEP_DECAY_EPOCHS = 10


# To be raised when a change of the code changes what a training gives, so that no older result passes for it.
_RECIPE = 1


@dataclass(frozen=True)
class AlignConfig:
    """How a pair of global heads is trained.

    The defaults suit collections of a few thousand images, where HACAN's own heads collapse or overfit;
    `AlignConfig.hacan()` has the published values.
    """

    loss: LossName | Literal["info_nce"] = "gcd"
    """HACAN's "gcd", "f_hn" or "m_hn"; or "info_nce", to compare with."""
    margin: float = 0.2
    """Margin of HACAN's losses."""
    temperature: float = 0.07
    """Temperature of InfoNCE, as the loss and in the warm-up."""
    info_nce_warmup: float = 0.5
    """Share of the epochs, from the first, with InfoNCE: hardest negatives collapse heads at a cold start."""
    dim: int = 256
    """Length of the shared embedding."""
    image_widths: tuple[int, ...] | None = None
    """Output widths of the image head's layers, ending in `dim`; by default that one layer."""
    text_widths: tuple[int, ...] | None = None
    """Output widths of the text head's layers, ending in `dim`; by default that one layer."""
    dropout: float = 0.5
    """Dropout after each head's first layer."""
    last_activation: bool = False
    """Whether a LeakyReLU follows the heads' last layers, as in HACAN; it crowds embeddings to one side."""
    center: bool = True
    """Whether the heads take off the mean training embedding, which all items of some backbones share."""
    epochs: int = 30
    """How many epochs; there is no early stopping, so the validation split isn't used up by the inputs."""
    batch_size: int = 64
    """Pairs in a batch."""
    all_captions: bool = False
    """Whether an epoch visits every caption once, instead of every image once with one of its captions."""
    split: Literal["train", "inputs"] = "train"
    """The split trained on: the fusion's own, or inputs, whose pairs are foreign to it."""
    learning_rate: float = 1e-3
    """Adam's highest learning rate."""
    weight_decay: float = 0.0
    """AdamW's decay of the weight matrices."""
    schedule: Literal["cosine", "step"] = "cosine"
    """The learning rate's course: half a cosine to 0, or HACAN's tenth every 10 epochs."""
    seed: int = 0
    """Decides the start, the batches and the dropout."""

    def __post_init__(self) -> None:
        choices = {"loss": (*LOSSES, "info_nce"), "schedule": ("cosine", "step"), "split": ("train", "inputs")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        for name, least in (
            ("dim", 1),
            ("epochs", 1),
            ("batch_size", 2),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        for name in ("margin", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if not 0 <= self.info_nce_warmup <= 1:
            raise ConfigError(f"info_nce_warmup must lie in [0, 1], got {self.info_nce_warmup}.")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}.")
        for name in ("image_widths", "text_widths"):
            widths = getattr(self, name)
            if widths is not None and (not widths or widths[-1] != self.dim):
                raise ConfigError(f"{name} must end in dim = {self.dim}, got {widths}.")
        for modality in ("image", "text"):
            self.head(modality, 1)

    @classmethod
    def hacan(cls, **changes: Any) -> Self:
        """HACAN's published heads and schedule, for backbones and collections as large as its own.

        >>> AlignConfig.hacan(seed=1).image_widths
        (1024, 896, 768)
        """
        published: dict[str, Any] = {
            "info_nce_warmup": 0.0,
            "dim": 768,
            "image_widths": (1024, 896, 768),
            "text_widths": (768, 768, 768),
            "dropout": 0.2,
            "last_activation": True,
            "center": False,
            "learning_rate": 1e-4,
            "schedule": "step",
        }
        return cls(**(published | changes))

    def head(self, modality: Modality, input_width: int) -> HeadConfig:
        """The head of `modality` on a backbone whose embeddings are `input_width` long."""
        widths = self.image_widths if modality == "image" else self.text_widths
        return HeadConfig(input_width, widths or (self.dim,), self.dropout, last_activation=self.last_activation)


def fit_aligner(
    config: AlignConfig,
    image_store: FeatureStore,
    text_store: FeatureStore,
    manifest: Manifest,
    folder: str | Path,
    *,
    name: str | None = None,
    accelerator: str = "auto",
) -> AlignedEncoder:
    """Aligns two frozen backbones by their stored features, or loads the result if `folder` holds it.

    Trains on the configuration's split and logs the recall on "val" after each epoch to `metrics.jsonl`. Killed at
    any moment and called again, it goes on from the last finished epoch; on a CPU the result is the same.
    Rejected items are left out.

    Args:
        config: the heads, the loss and the schedule.
        image_store: the image backbone's features.
        text_store: the text backbone's features.
        manifest: the collection that both stores hold.
        folder: where the encoder, its checkpoints and its metrics go.
        name: the encoder's name, for people.
        accelerator: as Lightning names it: "auto", "cpu", "gpu".

    Returns:
        The encoder, saved in `folder`, on the CPU.

    Raises:
        ConfigError: a store is of the wrong modality.
        DataError: the manifest has fewer than 2 images with captions to train on.
        FeatureError: a store lacks an item of the manifest.
        CheckpointError: the finished encoder in `folder` is damaged.
    """
    stores: dict[Modality, FeatureStore] = {"image": image_store, "text": text_store}
    for modality, store in stores.items():
        if store.modality != modality:
            raise ConfigError(f"The {modality} store holds {store.modality} features ({store.spec}).")
    folder = Path(folder)
    fingerprint = _fingerprint(config, stores, manifest)
    name = name or f"{image_store.spec} + {text_store.spec}"
    if _finished(folder, fingerprint):
        encoder = AlignedEncoder.from_pretrained(folder)
        encoder.name = name
        return encoder
    train, val = (_Split(stores, manifest.split(split)) for split in (config.split, "val"))
    sampler = PairSampler(
        train.gallery.caption_image,
        batch_size=config.batch_size,
        seed=config.seed,
        all_captions=config.all_captions,
    )
    module = _Alignment(config, image_store.dim, text_store.dim, steps_per_epoch=len(sampler))
    if config.center:
        module.image_head.center.copy_(train.gallery.image.mean(dim=0))
        module.text_head.center.copy_(train.gallery.text.mean(dim=0))
    fit(
        module,
        pair_loader(train, sampler),
        folder,
        epochs=config.epochs,
        seed=config.seed,
        description=f"aligning {name}",
        fingerprint=fingerprint,
        validation=_validation(val.gallery),
        accelerator=accelerator,
    )
    module.cpu()
    encoder = AlignedEncoder(
        {modality: Backbone(store.spec, store.fingerprint, store.width) for modality, store in stores.items()},
        {"image": module.image_head, "text": module.text_head},
        name=name,
        training={"config": asdict(config), "fingerprint": fingerprint},
    )
    encoder.save(folder)
    return encoder


class _Alignment(LightningModule):
    """The heads of both modalities, their loss and their optimiser."""

    def __init__(self, config: AlignConfig, image_dim: int, text_dim: int, steps_per_epoch: int) -> None:
        super().__init__()
        self.align_config = config
        self.steps_per_epoch = steps_per_epoch
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.image_head = GlobalHead(config.head("image", image_dim))
            self.text_head = GlobalHead(config.head("text", text_dim))

    def training_step(self, batch: "_PairBatch", batch_idx: int) -> Float[Tensor, ""]:
        image, text = self.image_head(batch.image), self.text_head(batch.text)
        loss = self._loss(image, text, same_item(batch.families))
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(image))
        return loss

    def validation_step(self, val: "_Gallery", batch_idx: int) -> None:
        scores = EmbeddingScores(self.image_head(val.image).cpu(), self.text_head(val.text).cpu())
        found = metrics(rank_queries(scores, val.caption_image.cpu()))
        values = {"val_rsum": found.rsum}
        for direction in ("image_to_text", "text_to_image"):
            recalls = getattr(found, direction)
            values |= {f"val_{direction}_r{k}": getattr(recalls, f"recall_{k}") for k in (1, 5, 10)}
        self.log_dict(values, batch_size=1)

    def configure_optimizers(self) -> Any:
        config = self.align_config
        weights = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        biases = [parameter for parameter in self.parameters() if parameter.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": weights, "weight_decay": config.weight_decay},
                {"params": biases, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
        )
        if config.schedule == "cosine":
            schedule = cosine(optimizer, self.steps_per_epoch * config.epochs)
        else:
            schedule = step_decay(optimizer, self.steps_per_epoch * _STEP_DECAY_EPOCHS)
        return {"optimizer": optimizer, "lr_scheduler": per_step(schedule)}

    def _loss(self, image: Tensor, text: Tensor, same: Tensor) -> Tensor:
        config = self.align_config
        if config.loss == "info_nce" or self.current_epoch < config.info_nce_warmup * config.epochs:
            return info_nce(image, text, same, temperature=config.temperature)
        return LOSSES[config.loss](image, text, same, margin=config.margin)


class _PairBatch(NamedTuple):
    """Backbone embeddings of matching images and texts, and the images' families."""

    image: Float[Tensor, "batch image_dim"]
    text: Float[Tensor, "batch text_dim"]
    families: Int[Tensor, "batch"]


class _Gallery(NamedTuple):
    """Backbone embeddings of images and their captions."""

    image: Float[Tensor, "images image_dim"]
    text: Float[Tensor, "captions text_dim"]
    caption_image: Int[Tensor, "captions"]


class _Split:
    """A split's backbone embeddings, in memory, without the rejected items."""

    def __init__(self, stores: dict[Modality, FeatureStore], manifest: Manifest) -> None:
        image_rows = stores["image"].rows_of(manifest.image_ids)
        text_rows = stores["text"].rows_of(manifest.caption_ids)
        kept_image = stores["image"].valid[image_rows]
        kept_text = stores["text"].valid[text_rows] & kept_image[manifest.caption_image]
        new_row = kept_image.cumsum(0) - 1
        self.gallery = _Gallery(
            stores["image"].embeddings(image_rows[kept_image]),
            stores["text"].embeddings(text_rows[kept_text]),
            new_row[manifest.caption_image[kept_text]],
        )
        self.families = manifest.families[kept_image]

    def __getitem__(self, rows: PairRows) -> _PairBatch:
        return _PairBatch(self.gallery.image[rows.images], self.gallery.text[rows.captions], self.families[rows.images])


def _validation(gallery: _Gallery) -> DataLoader | None:
    """The whole split as one batch; None where it has no captions."""
    if not len(gallery.text):
        return None
    return DataLoader([gallery], batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]


def _finished(folder: Path, fingerprint: str) -> bool:
    if not (folder / "config.json").exists():
        return False
    return read_config(folder, FORMAT, MAKER).get("training", {}).get("fingerprint") == fingerprint


def _fingerprint(config: AlignConfig, stores: dict[Modality, FeatureStore], manifest: Manifest) -> str:
    """SHA-256 of all that decides the result."""
    settings = asdict(config)
    # Alignments from before there was a choice stay valid.
    if config.split == "train":
        del settings["split"]
    return sha256_of_settings(
        {
            "recipe": _RECIPE,
            "config": settings,
            "features": {modality: store.fingerprint.digest for modality, store in stores.items()},
            "rejects": {modality: [r["id"] for r in store.rejects()] for modality, store in stores.items()},
            "collection": manifest.fingerprint,
            "splits": [item.split for item in manifest],
            "families": manifest.families.tolist(),
        }
    )
