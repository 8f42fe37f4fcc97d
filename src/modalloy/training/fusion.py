"""Training of HADA and of its trained baselines (arXiv 2301.04742, sections 3.3 and 4.1)."""

import copy
import hashlib
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch import LightningModule
from safetensors.torch import load_file, save
from torch import Tensor, nn

from modalloy.encoders.base import sha256_of_settings
from modalloy.errors import CheckpointError, ConfigError, DataError
from modalloy.files import atomic_path, read_json, sha256_of, write_json
from modalloy.fusion.feature_set import FeatureSet
from modalloy.fusion.inputs import EncoderFeatures
from modalloy.fusion.losses import (
    contrastive_loss,
    distilled_targets,
    exclude,
    matching_loss,
    positive_targets,
)
from modalloy.fusion.paired_features import SplitFeatures
from modalloy.fusion.queue import MomentumQueue
from modalloy.fusion.towers import TowerFuser
from modalloy.training.batches import PairRows, PairSampler, pair_loader
from modalloy.training.schedules import cosine, per_step
from modalloy.training.trainer import EarlyStopping, Metrics, fit

VALIDATION_RSUM = "validation_rsum"
_log = logging.getLogger(__name__)
# To be raised when a change of the code changes what a training gives, so that no older result passes for it.
_RECIPE = 2


@dataclass(frozen=True)
class FusionTraining:
    """How a fuser is trained: the paper's losses and optimiser, with batches and epochs for cached features.

    The paper trains with batches of 20 for at most 50 epochs; larger batches make fewer false steps on few pairs.
    """

    epochs: int = 20
    """Epochs at most."""
    batch_size: int = 64
    """Pairs in a batch."""
    all_captions: bool = False
    """Whether an epoch visits every caption once, as in HADA's code, instead of every image once with one of its
    captions."""
    learning_rate: float = 1e-4
    """Highest learning rate of AdamW, at the start."""
    final_learning_rate: float = 5e-6
    """Learning rate at the end of the cosine."""
    similarity_learning_rate: float = 1e-2
    """Learning rate of the similarity's weights, which barely move at the layers' rate."""
    weight_decay: float = 0.02
    """AdamW's weight decay of the layers' weights; biases, temperature and similarity weights have none."""
    temperature: float = 0.07
    """Start of the learned temperature, which stays in [0.001, 0.5]; each stage has its own, since the weighted
    similarity of the second has another scale."""
    momentum: float | None = None
    """Momentum of the momentum encoders; by default it fits the number of steps, up to the paper's 0.995."""
    queue_size: int = 64000
    """Pairs in the momentum queue, at most as many as an epoch has."""
    distillation: float = 0.4
    """Share of the momentum encoders' targets, reached after the first epoch; 0 for none."""
    patience: int = 5
    """Epochs without a better validation RSum after which training stops."""
    seed: int = 0
    """Seed of the start, the batches and the dropout."""
    augment_probability: float = 0.75
    """Chance of a training image to be replaced by one of its augmented copies, where there are any."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ConfigError(
                f"epochs must be at least 1 and batch_size at least 2, got {self.epochs} and {self.batch_size}."
            )
        for name in ("momentum", "distillation", "augment_probability"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {value}.")
        if not 0.001 <= self.temperature <= 0.5:
            raise ConfigError(f"temperature must lie in [0.001, 0.5], got {self.temperature}.")
        if not 0 <= self.final_learning_rate <= self.learning_rate < math.inf or self.learning_rate == 0:
            raise ConfigError(
                "learning_rate must be above 0 and final_learning_rate between 0 and it, "
                f"got {self.learning_rate} and {self.final_learning_rate}."
            )
        for name in ("similarity_learning_rate", "weight_decay", "queue_size", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if self.patience < 1:
            raise ConfigError(f"patience must be at least 1 epoch, got {self.patience}.")

    def momentum_over(self, steps: int) -> float:
        """The momentum of a training of so many steps.

        The momentum encoders are a mean over 1 / (1 - momentum) steps: by default a quarter of the training, since
        with more they would stay at their start, but at most the paper's 200.

        >>> FusionTraining().momentum_over(80), FusionTraining().momentum_over(10**6)
        (0.95, 0.995)
        """
        return min(0.995, 1 - 1 / max(steps / 4, 2)) if self.momentum is None else self.momentum


@dataclass(frozen=True)
class PairBatch:
    """The features of a batch of pairs: image row k belongs to text row k."""

    image: list[EncoderFeatures]
    text: list[EncoderFeatures]
    images: Int[Tensor, " batch"]
    families: Int[Tensor, " batch"]

    def to(self, device: torch.device, non_blocking: bool = False) -> "PairBatch":
        """The same batch on another device."""
        return PairBatch(
            [features.to(device, non_blocking) for features in self.image],
            [features.to(device, non_blocking) for features in self.text],
            self.images.to(device, non_blocking=non_blocking),
            self.families.to(device, non_blocking=non_blocking),
        )


class PairFeatures:
    """Reads the features of a batch of pairs; its index is what `PairSampler` yields.

    Args:
        image_features: features of all images.
        text_features: features of all captions.
        families: the family of each image; items of one family are never each other's negatives.
        tokens: whether the fuser reads tokens.
    """

    def __init__(
        self,
        image_features: FeatureSet,
        text_features: FeatureSet,
        families: Int[Tensor, " images"],
        tokens: bool = True,
    ) -> None:
        self.image_features = image_features
        self.text_features = text_features
        self.families = families
        self.tokens = tokens

    def __getitem__(self, rows: PairRows) -> PairBatch:
        return PairBatch(
            self.image_features.batch(rows.images, self.tokens, rows.copies),
            self.text_features.batch(rows.captions, self.tokens),
            rows.images,
            self.families[rows.images],
        )


class FusionModule(LightningModule):
    """Trains a fuser by contrast against the batch and a momentum queue, with distillation, and by matching.

    Keys are the momentum encoders' vectors, as in ALBEF, which HADA follows. Vectors enter the queue unweighted and
    the weighted similarity is applied to the queries, so that the queue never holds stale similarity weights.

    Args:
        fuser: the model to train; it is changed in place.
        training: see `FusionTraining`.
        steps: optimiser steps of the whole training, for the cosine.
        validation: the items whose RSum is logged after each epoch.
    """

    def __init__(self, fuser: TowerFuser, training: FusionTraining, steps: int, validation: SplitFeatures) -> None:
        super().__init__()
        self.fuser = fuser
        self.validation = validation
        # Copied after the fuser has its weights: a second stage distils from the first, not from a random start.
        self.momentum_towers = copy.deepcopy(fuser.towers).requires_grad_(False)
        self.temperature = nn.Parameter(torch.tensor(training.temperature))
        self.training_config = training
        self.steps = steps
        self.momentum = training.momentum_over(steps)
        self.queue = MomentumQueue(training.queue_size, fuser.dim)

    def training_step(self, batch: PairBatch, batch_index: int) -> Float[Tensor, ""]:
        """The sum of the contrastive and the matching loss (HADA, equation 9)."""
        image, text = self.fuser("image", batch.image), self.fuser("text", batch.text)
        contrast = self._contrastive(image, text, batch)
        related = batch.families[:, None] == batch.families[None, :]
        similarity = self._queries(image, batch.image) @ self._keys(text, batch.text).T
        matching = matching_loss(self.fuser.matching, image, text, similarity, related)
        self.log_dict(
            {"contrastive": contrast, "matching": matching},
            on_epoch=True,
            on_step=False,
            batch_size=len(image),
        )
        return contrast + matching

    def _contrastive(
        self, image: Float[Tensor, "batch fused"], text: Float[Tensor, "batch fused"], batch: PairBatch
    ) -> Float[Tensor, ""]:
        with torch.no_grad():
            self._update_momentum()
            # Lightning puts the whole module into training mode; a teacher with dropout would teach its noise.
            self.momentum_towers.eval()
            momentum_image = self.momentum_towers["image"](batch.image)
            momentum_text = self.momentum_towers["text"](batch.text)
        image_keys, text_keys = self._keys(momentum_image, batch.image), self._keys(momentum_text, batch.text)
        positives, excluded = self._relations(batch)
        targets = positive_targets(positives)
        share = self._distillation_share()
        losses = []
        for query, momentum_query, inputs, keys, queued in (
            (image, momentum_image, batch.image, text_keys, self.queue.text_vectors),
            (text, momentum_text, batch.text, image_keys, self.queue.image_vectors),
        ):
            logits = self._logits(self._queries(query, inputs), keys, queued, excluded)
            with torch.no_grad():
                momentum_logits = self._logits(self._queries(momentum_query, inputs), keys, queued, excluded)
                soft = distilled_targets(targets, momentum_logits, share)
            losses.append(contrastive_loss(logits, soft))
        # Pushed when the step is done: the gradient still needs the queue as it is.
        self._to_push = (image_keys, text_keys, batch.images, batch.families)
        return torch.stack(losses).mean()

    def _relations(self, batch: PairBatch) -> tuple[Bool[Tensor, "batch keys"], Bool[Tensor, "batch keys"]]:
        """Which keys show a query's own image, and which are neither positive nor an honest negative."""
        images = torch.cat([batch.images, self.queue.images])
        families = torch.cat([batch.families, self.queue.families])
        positives = batch.images[:, None] == images[None, :]
        return positives, (batch.families[:, None] == families[None, :]) & ~positives

    def _queries(self, fused: Tensor, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch dim"]:
        weights = self.fuser.similarity()
        parts = [fused, *self._weighted_embeddings(inputs)]
        return torch.cat([part * weight for part, weight in zip(parts, weights, strict=True)], dim=-1)

    def _keys(self, fused: Tensor, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch dim"]:
        return torch.cat([fused, *self._weighted_embeddings(inputs)], dim=-1)

    def _weighted_embeddings(self, inputs: Sequence[EncoderFeatures]) -> list[Tensor]:
        return [inputs[position].embedding for position in self.fuser.config.weighted_inputs]

    def _logits(self, queries: Tensor, keys: Tensor, queued: Tensor, excluded: Tensor) -> Tensor:
        # The queue's product runs in its own bfloat16: casting 64,000 stored vectors up would cost more than it.
        similarity = torch.cat([queries @ keys.T, (queries.to(queued.dtype) @ queued.T).float()], dim=1)
        return exclude(similarity / self.temperature, excluded)

    def _distillation_share(self) -> float:
        """Rises linearly over the first epoch, while the momentum encoders know little."""
        batches = max(int(self.trainer.num_training_batches), 1)
        return self.training_config.distillation * min(1.0, self.global_step / batches)

    @torch.no_grad()
    def _update_momentum(self) -> None:
        slow: list[Tensor] = list(self.momentum_towers.parameters())
        fast: list[Tensor] = list(self.fuser.towers.parameters())
        torch._foreach_lerp_(slow, fast, 1 - self.momentum)
        # The statistics of a BatchNorm move slowly as they are.
        for kept, current in zip(self.momentum_towers.buffers(), self.fuser.towers.buffers(), strict=True):
            kept.copy_(current)

    def on_train_batch_end(self, *_: Any) -> None:
        """Queues the batch and clamps what the paper clamps."""
        self.queue.push(*self._to_push)
        with torch.no_grad():
            self.temperature.clamp_(0.001, 0.5)
        self.fuser.similarity.clamp_()

    def on_train_epoch_end(self) -> None:
        """Logs the validation RSum, by which the best epoch is chosen."""
        self.log(VALIDATION_RSUM, self.validation.rsum(self.fuser))

    def configure_optimizers(self) -> Any:
        """AdamW with a cosine from the highest to the final learning rate."""
        config = self.training_config
        trained = [*self.fuser.towers.parameters(), *self.fuser.matching.parameters()]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [*(p for p in trained if p.ndim < 2), self.temperature], "weight_decay": 0.0},
        ]
        if self.fuser.config.weighted_inputs:
            groups.append(
                {
                    "params": [self.fuser.similarity.alpha],
                    "weight_decay": 0.0,
                    "lr": config.similarity_learning_rate,
                }
            )
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        floor = config.final_learning_rate / config.learning_rate
        return {"optimizer": optimizer, "lr_scheduler": per_step(cosine(optimizer, self.steps, floor=floor))}


def fit_fuser(
    fuser: TowerFuser,
    training: FusionTraining,
    train: SplitFeatures,
    validation: SplitFeatures,
    folder: Path,
    description: str,
) -> list[Metrics]:
    """Trains `fuser` in place and leaves it at its best epoch by validation RSum, or at its start if none is better.

    A finished training is loaded from `folder`, an interrupted one goes on from its last epoch; either only if the
    configuration, the start and the features are the same.

    Where the image features have augmented copies, each image of a batch is one of them with the training's
    `augment_probability`, the same copy for all encoders that have it, and the momentum encoders see what the trained
    ones see, as in HADA's published code. A copy that an encoder lacks or rejected is replaced by its features of the
    image itself; their number is logged. Validation sees the images themselves.

    Args:
        fuser: the model, at its start.
        training: see `FusionTraining`.
        train: the items to train on.
        validation: the items that choose the epoch.
        folder: where `model.safetensors`, `fit.json`, `metrics.jsonl` and, meanwhile, checkpoints go.
        description: stands before the progress bar.

    Returns:
        The metrics of each epoch, the start as epoch 0.
    """
    fingerprint = _fingerprint(fuser, training, train, validation)
    history = _load_finished(fuser, folder, fingerprint)
    if history is not None:
        return history
    start = copy.deepcopy(fuser.state_dict())
    start_rsum = validation.rsum(fuser)
    paired = train.paired
    sampler = PairSampler(
        paired.manifest.caption_image,
        caption_rows=train.caption_rows,
        batch_size=training.batch_size,
        seed=training.seed,
        all_captions=training.all_captions,
        copies=paired.image.copies,
        augment_probability=training.augment_probability,
    )
    if _augments(training, train):
        _log_lacking(train)
    # A longer queue would hold pairs twice, and its zeros would fill the checkpoints of a small collection.
    pairs = len(train.caption_rows if training.all_captions else train.image_rows)
    limited = replace(training, queue_size=min(training.queue_size, pairs))
    stopping = EarlyStopping(VALIDATION_RSUM, patience=training.patience)
    history = fit(
        FusionModule(fuser, limited, len(sampler) * training.epochs, validation),
        pair_loader(PairFeatures(paired.image, paired.text, paired.manifest.families, fuser.reads_tokens), sampler),
        folder,
        epochs=training.epochs,
        seed=training.seed,
        description=description,
        fingerprint=fingerprint,
        early_stopping=stopping,
    )
    if float(history[stopping.best(history)][VALIDATION_RSUM] or 0) <= start_rsum:
        fuser.load_state_dict(start)
    history = [{"epoch": 0, VALIDATION_RSUM: start_rsum}, *history]
    _save_finished(fuser, folder, fingerprint, history)
    return history


def _fingerprint(fuser: TowerFuser, training: FusionTraining, train: SplitFeatures, validation: SplitFeatures) -> str:
    """SHA-256 of all that decides the result, so that another training's checkpoints aren't continued."""
    stores = (*train.paired.image.stores, *train.paired.text.stores)
    settings = asdict(training)
    # Where nothing is augmented it decides nothing.
    probability = settings.pop("augment_probability")
    if _augments(training, train):
        copies = [
            [
                [store.fingerprint.digest, store.collection, [reject["id"] for reject in store.rejects()]]
                for store in each.stores
            ]
            for each in train.paired.image.augmented
        ]
        settings |= {"augment_probability": probability, "augmented": copies}
    return sha256_of_settings(
        {
            "recipe": _RECIPE,
            "fuser": fuser.config.to_dict(),
            "training": settings,
            "start": hashlib.sha256(save(_contiguous(fuser))).hexdigest(),
            "features": [store.fingerprint.digest for store in stores],
            "collection": train.paired.manifest.fingerprint,
            "families": train.paired.manifest.families.tolist(),
            "captions": [split.caption_rows.tolist() for split in (train, validation)],
        }
    )


def _augments(training: FusionTraining, train: SplitFeatures) -> bool:
    return training.augment_probability > 0 and train.paired.image.copies > 0


def _log_lacking(train: SplitFeatures) -> None:
    for position, copies in enumerate(train.paired.image.augmented):
        wanted = len(copies) * len(train.image_rows)
        if lacking := copies.lacking(train.image_rows):
            _log.warning(
                "encoder %d lacks %d of %d augmented copies of the training images; the images themselves stand in.",
                position,
                lacking,
                wanted,
            )


def _load_finished(fuser: TowerFuser, folder: Path, fingerprint: str) -> list[Metrics] | None:
    """Gives the fuser the weights of a finished training of this fingerprint, if `folder` holds one."""
    record = folder / "fit.json"
    if not record.exists():
        return None
    try:
        finished = read_json(record)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(finished, dict) or not {"fingerprint", "weights_sha256", "history"} <= set(finished):
        raise CheckpointError(f"{record} isn't the record of a fit; delete {folder} and fit again.")
    if finished["fingerprint"] != fingerprint:
        return None
    weights = folder / "model.safetensors"
    if not weights.exists() or sha256_of(weights) != finished["weights_sha256"]:
        raise CheckpointError(f"{weights} isn't the file that {record.name} describes; delete {folder} and fit again.")
    fuser.load_state_dict(load_file(weights))
    return finished["history"]


def _save_finished(fuser: TowerFuser, folder: Path, fingerprint: str, history: list[Metrics]) -> None:
    weights = folder / "model.safetensors"
    with atomic_path(weights) as temporary:
        temporary.write_bytes(save(_contiguous(fuser)))
    record = {"fingerprint": fingerprint, "weights_sha256": sha256_of(weights), "history": history}
    write_json(folder / "fit.json", record)
    # With optimiser, momentum encoders and queue they are many times the model's size, and no longer needed.
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _contiguous(fuser: TowerFuser) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in fuser.state_dict().items()}
