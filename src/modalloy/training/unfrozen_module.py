"""What Lightning trains when the backbones are trained, too, from images and captions."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from modalloy.align import Tokens, compared_packed
from modalloy.encoders import Encoded, Encoder, Level, Modality
from modalloy.encoders.base import MODALITIES, Prepared
from modalloy.errors import ConfigError, DataError
from modalloy.training.align_batches import PairBatch, TokenBatch
from modalloy.training.align_module import Alignment
from modalloy.training.align_pictures import PictureBatch, PictureSplit
from modalloy.training.encoded_items import EncodedItems, encoded_gallery

_log = logging.getLogger(__name__)
_CAPTIONS_AT_ONCE = 256


class UnfrozenAlignment(Alignment):
    """The heads and the local branch as they are, and the backbones' networks below them, all in training.

    The optimiser is a new one, whose learning rates take the schedule's course from the first epoch that trains the
    backbones. Validation is in float32, as what is saved will be used.

    Args:
        frozen: the heads and the local branch, which are copied.
        encoders: the backbones; their networks are trained in place.
        train: what is trained on.
        val: what is validated on.
    """

    def __init__(
        self, frozen: Alignment, encoders: Mapping[Modality, Encoder], train: PictureSplit, val: PictureSplit
    ) -> None:
        widths = frozen.image_head.config.input_width, frozen.text_head.config.input_width
        local = None if frozen.local is None else frozen.local.config
        super().__init__(frozen.align_config, *widths, frozen.steps_per_epoch, local)
        self.load_state_dict(frozen.state_dict())
        self.networks = nn.ModuleDict(trainable(encoders))
        self.networks.requires_grad_(True).train()
        if self.align_config.unfreeze.recompute:
            for modality, encoder in encoders.items():
                encoder.recompute_activations(modality)
        self._encoders, self._train, self._val = encoders, train, val
        self._images = self._unseen("image")
        self._told: set[str] = set()
        self._read = 0

    @property
    def _epochs_before(self) -> int:
        return (self.align_config.unfreeze.epoch or 1) - 1

    def _parameter_groups(self) -> list[dict[str, Any]]:
        config = self.align_config
        trained = {id(parameter) for parameter in self.networks.parameters()}
        own = [parameter for parameter in self.parameters() if id(parameter) not in trained]
        return [
            *self._decayed(own, config.learning_rate),
            *self._decayed(self.networks.parameters(), config.unfreeze.learning_rate),
        ]

    def on_fit_start(self) -> None:
        for encoder in self._encoders.values():
            encoder.to(self.device)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves the pictures where they are: encoders normalise them first, and move them then."""
        return batch

    def on_train_epoch_start(self) -> None:
        self._read = 0

    def on_train_epoch_end(self) -> None:
        if not self._read:
            # Else each epoch would change nothing, and the result would pass for a trained one.
            raise DataError(
                f"no picture to train on could be read, such as: {min(self._told)}; bring the pictures back to where "
                "they were when their features were extracted, and do the same again."
            )

    def training_step(self, batch: PictureBatch, batch_idx: int) -> Float[Tensor, ""] | None:  # type: ignore[override]
        self._tell(batch.broken)
        self._read += len(batch.images)
        if len(batch.images) < 2:
            # Nothing to compare a pair with; Lightning then takes no step.
            return None
        assert batch.captions is not None
        image, text = self._encoded("image", list(batch.pictures)), self._captions(self._train, batch.captions)
        tokens = None if self.local is None else TokenBatch(_compared("image", image), _compared("text", text))
        families = self._train.families[batch.images].to(self.device)
        pairs = PairBatch(image["high"].embedding, text["high"].embedding, families, tokens)
        return super().training_step(pairs, batch_idx)

    def on_validation_epoch_start(self) -> None:
        self._images = self._unseen("image")

    def validation_step(self, batch: PictureBatch, batch_idx: int) -> None:
        self._tell(batch.broken)
        if len(batch.images):
            with torch.autocast(self.device.type, enabled=False):
                self._images.add(batch.images, self._encoded("image", list(batch.pictures)))

    def on_validation_epoch_end(self) -> None:
        val, captions = self._val, self._unseen("text")
        described = torch.isin(val.caption_image, self._images.rows).nonzero()[:, 0]
        for rows in described.split(_CAPTIONS_AT_ONCE):
            if len(rows):
                captions.add(rows, self._captions(val, rows))
        if len(described):
            self._log_recalls(encoded_gallery(self._images, captions, val.caption_image))

    def _unseen(self, modality: Modality) -> EncodedItems:
        rows = self._val.sample.images if modality == "image" else self._val.sample.captions
        return EncodedItems(modality, rows[:0] if self.local is None else rows)

    def _captions(self, split: PictureSplit, rows: Int[Tensor, "batch"]) -> dict[Level, Encoded]:
        encoder = self._encoders["text"]
        return self._encoded("text", [encoder.preprocess("text", split.captions[row]) for row in rows.tolist()])

    def _encoded(self, modality: Modality, prepared: Sequence[Prepared]) -> dict[Level, Encoded]:
        levels: tuple[Level, ...] = ("high",)
        if self.local is not None and getattr(self.local.config, f"{modality}_mid") is not None:
            levels = ("high", "mid")
        return self._encoders[modality].forward_levels(modality, prepared, levels)

    def _tell(self, broken: Sequence[str]) -> None:
        for reason in broken:
            if reason not in self._told:
                self._told.add(reason)
                _log.warning("A picture is left out of the training: %s", reason)


def trainable(encoders: Mapping[Modality, Encoder]) -> dict[str, nn.Module]:
    """The networks of the backbones, which a training changes.

    Raises:
        ConfigError: one has none that can be trained (named).
    """
    networks: dict[str, nn.Module] = {}
    for modality in MODALITIES:
        network = encoders[modality].network(modality)
        # One of two modalities couldn't be kept as a backbone of one (`TunedEncoder`).
        if network is None or len(encoders[modality].modalities) > 1:
            raise ConfigError(
                f"{encoders[modality].spec} can't be trained; leave out unfreeze.epoch, so that both backbones stay "
                f"frozen, or take another backbone of {modality}s."
            )
        networks[modality] = network
    return networks


def _compared(modality: Modality, levels: Mapping[Level, Encoded]) -> dict[Level, Tokens]:
    return compared_packed(modality, {level: (each.tokens, each.lengths) for level, each in levels.items()})
