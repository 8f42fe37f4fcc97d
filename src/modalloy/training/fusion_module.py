"""HADA's training step: contrast against a momentum queue, distillation, matching (arXiv 2301.04742, section 3.3)."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from modalloy.encoders import Modality
from modalloy.fusion.edges import LearnedEdges
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
from modalloy.fusion.rotation import truncate
from modalloy.fusion.star_layer import wide
from modalloy.fusion.towers import TowerFuser
from modalloy.training.chunks import encode_in_chunks
from modalloy.training.fusion_training import FusionTraining
from modalloy.training.pair_features import PairBatch
from modalloy.training.processes import first_says, gathered
from modalloy.training.schedules import constant, cosine, per_step, restarts

VALIDATION_RSUM = "validation_rsum"


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

    Raises:
        ConfigError: the fused vector isn't longer than a prefix.
    """

    def __init__(self, fuser: TowerFuser, training: FusionTraining, steps: int, validation: SplitFeatures) -> None:
        super().__init__()
        training.check_prefixes(fuser.fused_dim)
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
        image = gathered(batch.of_pairs(_full(self._fused("image", batch.image))), count)
        text = gathered(_full(self._fused("text", batch.text)), count)
        if batch_index % self.training_config.accumulate == 0:
            self._update_momentum()
        losses = {"contrastive": self._contrastive(image, text, batch)}
        total = losses["contrastive"]
        if weight := self.training_config.matching_weight:
            losses["matching"] = self._matching(image, text, batch)
            total = total + weight * losses["matching"]
        self.log_dict(losses, on_epoch=True, on_step=False, batch_size=count)
        return total

    def _fused(self, modality: Modality, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "part fused"]:
        return encode_in_chunks(partial(self.fuser, modality), inputs, self.training_config.chunk_size)

    def _matching(
        self, image: Float[Tensor, "batch fused"], text: Float[Tensor, "batch fused"], batch: PairBatch
    ) -> Float[Tensor, ""]:
        related = batch.families[:, None] == batch.families[None, :]
        sampled = self.training_config.matching_negatives == "sampled"
        temperature = self.temperature.detach() if sampled else None
        queries, keys = self._weighted(batch, "image"), self._weighted(batch, "text")
        with _exact(image.device):
            similarity = self._queries(image, queries) @ self._keys(text, keys).T
            return matching_loss(self.fuser.matching, image, text, similarity, related, temperature)

    @torch.no_grad()
    def _momentum_vectors(self, batch: PairBatch) -> tuple[Float[Tensor, "batch fused"], Float[Tensor, "batch fused"]]:
        # Lightning puts the whole module into training mode; a teacher with dropout would teach its noise.
        self.momentum_towers.eval()
        chunk, count = self.training_config.chunk_size, len(batch.images)
        image = batch.of_pairs(encode_in_chunks(self.momentum_towers["image"], batch.image, chunk))
        text = encode_in_chunks(self.momentum_towers["text"], batch.text, chunk)
        return gathered(_full(image), count), gathered(_full(text), count)

    def _contrastive(
        self, image: Float[Tensor, "batch fused"], text: Float[Tensor, "batch fused"], batch: PairBatch
    ) -> Float[Tensor, ""]:
        momentum_image, momentum_text = self._momentum_vectors(batch)
        image_inputs, text_inputs = self._weighted(batch, "image"), self._weighted(batch, "text")
        image_keys, text_keys = self._keys(momentum_image, image_inputs), self._keys(momentum_text, text_inputs)
        positives, excluded = self._relations(batch)
        targets = positive_targets(positives)
        distillation = self._distillation_share()
        losses = []
        for query, momentum_query, inputs, keys, queued, taught in (
            (image, momentum_image, image_inputs, text_keys, self.queue.text_vectors, batch.taught),
            (text, momentum_text, text_inputs, image_keys, self.queue.image_vectors, _transposed(batch.taught)),
        ):
            views = [(self._queries(query, inputs), keys, queued)]
            # Whatever enters the weighted similarity comes after the fused vector.
            views += [
                (truncate(query, length), truncate(keys, length), truncate(queued, length))
                for length in self.training_config.prefixes
            ]
            logits = [self._logits(*view, excluded) for view in views]
            if taught is None:
                with torch.no_grad():
                    momentum_logits = self._logits(self._queries(momentum_query, inputs), keys, queued, excluded)
                    soft = distilled_targets(targets, momentum_logits, distillation)
                found = [contrastive_loss(each, soft) for each in logits]
            else:
                found = [self._taught(each, targets, taught, excluded) for each in logits]
            losses.append(torch.stack(found).mean())
        # Pushed when the step is done: the gradient still needs the queue as it is.
        self._to_push = (image_keys, text_keys, batch.images, batch.families)
        share = self.training_config.image_to_text_share
        return share * losses[0] + (1 - share) * losses[1]

    def _taught(
        self,
        logits: Float[Tensor, "batch keys"],
        targets: Float[Tensor, "batch keys"],
        taught: Float[Tensor, "batch batch"],
        excluded: Bool[Tensor, "batch keys"],
    ) -> Float[Tensor, ""]:
        """The contrast against the ground truth and, of the batch alone, against a teacher, which has no queue."""
        batch = len(taught)
        temperature = self.training_config.teacher_temperature or self.temperature.detach()
        soft = exclude(taught / temperature, excluded[:, :batch]).softmax(dim=-1)
        share = self.training_config.distillation
        return (1 - share) * contrastive_loss(logits, targets) + share * contrastive_loss(logits[:, :batch], soft)

    def _relations(self, batch: PairBatch) -> tuple[Bool[Tensor, "batch keys"], Bool[Tensor, "batch keys"]]:
        """Which keys show a query's own image, and which are neither positive nor an honest negative."""
        images = torch.cat([batch.images, self.queue.images])
        families = torch.cat([batch.families, self.queue.families])
        positives = batch.images[:, None] == images[None, :]
        return positives, (batch.families[:, None] == families[None, :]) & ~positives

    def _queries(self, fused: Tensor, inputs: Sequence[Tensor]) -> Float[Tensor, "batch dim"]:
        weights = self.fuser.similarity()
        parts = [fused, *inputs]
        return torch.cat([part * weight for part, weight in zip(parts, weights, strict=True)], dim=-1)

    def _keys(self, fused: Tensor, inputs: Sequence[Tensor]) -> Float[Tensor, "batch dim"]:
        return torch.cat([fused, *inputs], dim=-1)

    def _weighted(self, batch: PairBatch, modality: Modality) -> list[Float[Tensor, "batch _"]]:
        """The embeddings of the inputs that enter the weighted similarity, for each pair."""
        inputs = batch.image if modality == "image" else batch.text
        known = [inputs[position].known_embedding for position in self.fuser.config.weighted_inputs]
        own = [batch.of_pairs(each) for each in known] if modality == "image" else known
        return [gathered(each, len(batch.images)) for each in own]

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
        self.log(VALIDATION_RSUM, first_says(lambda: self.validation.rsum(self.result()), self.device))

    def result(self) -> TowerFuser:
        """The fuser that the training gives: the trained one, or with the momentum encoders in place of its towers."""
        if not self.training_config.averaged:
            return self.fuser
        averaged = copy.copy(self.fuser)
        averaged._modules = {**self.fuser._modules, "towers": self.momentum_towers}
        return averaged

    def configure_optimizers(self) -> Any:
        """AdamW with a schedule from the highest to the final learning rate."""
        config = self.training_config
        trained = [*self.fuser.towers.parameters(), *self.fuser.matching.parameters()]
        # The numbers on edges are a table of scalars; decay would pull them back to no edges at all.
        tables = {id(each.table) for each in self.fuser.towers.modules() if isinstance(each, LearnedEdges)}
        decayed = [p for p in trained if p.ndim >= 2 and id(p) not in tables]
        others = [p for p in trained if p.ndim < 2 or id(p) in tables]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": [*others, self.temperature], "weight_decay": 0.0},
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


def _full(vectors: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """At least float32, whatever the layers computed in."""
    return vectors.to(wide(vectors.dtype))


def _transposed(matrix: Float[Tensor, "rows columns"] | None) -> Float[Tensor, "columns rows"] | None:
    return None if matrix is None else matrix.T


def _exact(device: torch.device) -> AbstractContextManager:
    """Takes a loss out of autocast: a softmax over 64,000 keys in bfloat16 would lose most of them."""
    return torch.autocast(device.type, enabled=False)
