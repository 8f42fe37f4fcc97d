"""What Lightning trains when two backbones are aligned."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from modalloy.align import GlobalHead, LocalBranch, LocalConfig, hacan_loss, info_nce, same_item
from modalloy.align.losses import LOSSES, info_nce_of_scores
from modalloy.evaluation import EmbeddingScores, metrics, rank_queries
from modalloy.training.align_batches import Gallery, PairBatch, TokenBatch
from modalloy.training.align_config import AlignConfig
from modalloy.training.schedules import cosine, per_step, step_decay

_STEP_DECAY_EPOCHS = 10


class Alignment(LightningModule):
    """The heads of both modalities, the local branch if there is one, their loss and their optimiser."""

    def __init__(
        self,
        config: AlignConfig,
        image_dim: int,
        text_dim: int,
        steps_per_epoch: int,
        local: LocalConfig | None = None,
    ) -> None:
        super().__init__()
        self.align_config = config
        self.steps_per_epoch = steps_per_epoch
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.image_head = GlobalHead(config.head("image", image_dim))
            self.text_head = GlobalHead(config.head("text", text_dim))
            self.local = None if local is None else LocalBranch(local)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Float[Tensor, ""] | None:
        image, text = self.image_head(batch.image), self.text_head(batch.text)
        same = same_item(batch.families)
        score = None if batch.tokens is None else self._local_scores(batch.tokens)
        # Embeddings and scores are in float32; their products would not be.
        with torch.autocast(image.device.type, enabled=False):
            loss = self._loss(score, image, text, same)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(image))
        return loss

    def validation_step(self, val: Any, batch_idx: int) -> None:
        self._log_recalls(val)

    def configure_optimizers(self) -> Any:
        config = self.align_config
        optimizer = torch.optim.AdamW(self._parameter_groups(), lr=config.learning_rate)
        start = self.steps_per_epoch * self._epochs_before
        if config.schedule == "cosine":
            schedule = cosine(optimizer, self.steps_per_epoch * config.epochs, start=start)
        else:
            schedule = step_decay(optimizer, self.steps_per_epoch * _STEP_DECAY_EPOCHS, start=start)
        return {"optimizer": optimizer, "lr_scheduler": per_step(schedule)}

    @property
    def _epochs_before(self) -> int:
        """Epochs of the schedule that went before those of this module."""
        return 0

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return self._decayed(self.parameters(), self.align_config.learning_rate)

    def _decayed(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> list[dict[str, Any]]:
        """Matrices with weight decay, all else without."""
        parameters = list(parameters)
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        return [
            {"params": matrices, "weight_decay": self.align_config.weight_decay, "lr": learning_rate},
            {"params": others, "weight_decay": 0.0, "lr": learning_rate},
        ]

    def _log_recalls(self, val: Gallery) -> None:
        scores = EmbeddingScores(self.image_head(val.image).cpu(), self.text_head(val.text).cpu())
        values = _recalls("val", scores, val.caption_image)
        if val.sample is not None:
            local = self._local_scores(val.sample.tokens).cpu()
            # Rows of scores against unit vectors give the scores again.
            scores = EmbeddingScores(local, torch.eye(local.shape[1]))
            values |= _recalls("val_local", scores, val.sample.caption_image)
        self.log_dict(values, batch_size=1)

    def _local_scores(self, tokens: TokenBatch) -> Float[Tensor, "images captions"]:
        assert self.local is not None
        return self.local(tokens.image, tokens.text)

    def _global_loss(
        self, image: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"], same: Bool[Tensor, "batch batch"]
    ) -> Float[Tensor, ""]:
        config = self.align_config
        if config.loss == "info_nce" or self._warming_up():
            return info_nce(image, text, same, temperature=config.temperature)
        return LOSSES[config.loss](image, text, same, margin=config.margin)

    def _loss(
        self,
        score: Float[Tensor, "batch batch"] | None,
        image: Float[Tensor, "batch dim"],
        text: Float[Tensor, "batch dim"],
        same: Bool[Tensor, "batch batch"],
    ) -> Float[Tensor, ""]:
        """HACAN's loss; where the global one is InfoNCE, it is that of the local scores, too."""
        if score is None:
            return self._global_loss(image, text, same)
        config = self.align_config
        assert self.local is not None
        weight = config.local.global_weight
        if config.loss == "info_nce" or self._warming_up():
            # The mean of the terms' cosines, for which the temperature is meant.
            mean = score / len(self.local.config.terms)
            local = info_nce_of_scores(mean, same, temperature=config.temperature)
            return local + weight * self._global_loss(image, text, same)
        return hacan_loss(score, image, text, same, loss=config.loss, margin=config.margin, global_weight=weight)

    def _warming_up(self) -> bool:
        return self.current_epoch < self.align_config.info_nce_warmup * self.align_config.epochs


def _recalls(prefix: str, scores: EmbeddingScores, caption_image: Tensor) -> dict[str, float]:
    found = metrics(rank_queries(scores, caption_image.cpu()))
    values = {f"{prefix}_rsum": found.rsum}
    for direction in ("image_to_text", "text_to_image"):
        recalls = getattr(found, direction)
        values |= {f"{prefix}_{direction}_r{k}": getattr(recalls, f"recall_{k}") for k in (1, 5, 10)}
    return values
