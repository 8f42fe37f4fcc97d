"""HADA's training step: contrast against a momentum queue, distillation, matching (arXiv 2301.04742, section 3.3)."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

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
from modalloy.training.batches import PairRows
from modalloy.training.fusion_training import FusionTraining
from modalloy.training.processes import first_says, gathered, part_of
from modalloy.training.schedules import constant, cosine, per_step, restarts

VALIDATION_RSUM = "validation_rsum"


@dataclass(frozen=True)
class PairBatch:
    """The features of a batch of pairs, or this process's part of them: image row k belongs to text row k."""

    image: list[EncoderFeatures]
    text: list[EncoderFeatures]
    images: Int[Tensor, " batch"]
    """The row of each pair's image; of the whole batch, also where the features are a part."""
    families: Int[Tensor, " batch"]
    """The family of each pair's image, likewise."""

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
        part = part_of(len(rows.images))
        copies = None if rows.copies is None else rows.copies[part]
        return PairBatch(
            self.image_features.batch(rows.images[part], self.tokens, copies),
            self.text_features.batch(rows.captions[part], self.tokens),
            rows.images,
            self.families[rows.images],
        )


class FusionModule(LightningModule):
    """Trains a fuser by contrast against the batch and a momentum queue, with distillation, and by matching.

    Of several processes each fuses its part of a batch, and all compute the loss of the whole batch (`processes`): the
    negatives of the contrast and of the matching are drawn from it as in a single process.

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
        count = len(batch.images)
        image = gathered(self.fuser("image", batch.image).float(), count)
        text = gathered(self.fuser("text", batch.text).float(), count)
        if batch_index % self.training_config.accumulate == 0:
            self._update_momentum()
        contrast = self._contrastive(image, text, batch)
        related = batch.families[:, None] == batch.families[None, :]
        with _exact(image.device):
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
            # Lightning puts the whole module into training mode; a teacher with dropout would teach its noise.
            self.momentum_towers.eval()
            momentum_image = gathered(self.momentum_towers["image"](batch.image).float(), len(batch.images))
            momentum_text = gathered(self.momentum_towers["text"](batch.text).float(), len(batch.images))
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
        parts = [fused, *self._weighted_embeddings(inputs, len(fused))]
        return torch.cat([part * weight for part, weight in zip(parts, weights, strict=True)], dim=-1)

    def _keys(self, fused: Tensor, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch dim"]:
        return torch.cat([fused, *self._weighted_embeddings(inputs, len(fused))], dim=-1)

    def _weighted_embeddings(self, inputs: Sequence[EncoderFeatures], count: int) -> list[Tensor]:
        return [gathered(inputs[position].embedding, count) for position in self.fuser.config.weighted_inputs]

    def _logits(self, queries: Tensor, keys: Tensor, queued: Tensor, excluded: Tensor) -> Tensor:
        # The queue's product runs in its own bfloat16: casting 64,000 stored vectors up would cost more than it.
        with _exact(queries.device):
            similarity = torch.cat([queries @ keys.T, (queries.to(queued.dtype) @ queued.T).float()], dim=1)
        return exclude(similarity / self.temperature, excluded)

    def _distillation_share(self) -> float:
        """Rises linearly over the first epoch, while the momentum encoders know little."""
        steps = max(self.training_config.steps_an_epoch(int(self.trainer.num_training_batches)), 1)
        return self.training_config.distillation * min(1.0, self.global_step / steps)

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
        self.log(VALIDATION_RSUM, first_says(lambda: self.validation.rsum(self.fuser), self.device))

    def configure_optimizers(self) -> Any:
        """AdamW with a schedule from the highest to the final learning rate."""
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
        return {"optimizer": optimizer, "lr_scheduler": per_step(self._schedule(optimizer))}

    def _schedule(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        config = self.training_config
        floor = config.final_learning_rate / config.learning_rate
        warmup = round(config.warmup * self.steps)
        if config.schedule == "constant":
            return constant(optimizer, warmup=warmup)
        if config.schedule == "restarts":
            period = config.restart_epochs * max(self.steps // config.epochs, 1)
            return restarts(optimizer, period, floor=floor, warmup=warmup)
        return cosine(optimizer, self.steps, floor=floor, warmup=warmup)


def _exact(device: torch.device) -> AbstractContextManager:
    """Takes a loss out of autocast: a softmax over 64,000 keys in bfloat16 would lose most of them."""
    return torch.autocast(device.type, enabled=False)
