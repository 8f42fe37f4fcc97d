"""What all encoders built from hub models share; a family says only how its network is run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from modalloy.encoders.base import Encoded, Encoder, Fingerprint, Modality, Prepared, sha256_of_settings
from modalloy.encoders.hub.files import ModelFiles
from modalloy.encoders.hub.model import config_sha256
from modalloy.encoders.hub.processing import PictureProcessor, TextProcessor
from modalloy.errors import CheckpointError, one_line


@dataclass(frozen=True)
class Output:
    """What a family's network gives for a batch."""

    embedding: Float[Tensor, "batch dim"]
    """Of any norm."""
    tokens: Float[Tensor, "batch tokens width"]
    """Padded where they differ in number."""
    summary: Float[Tensor, "batch width"] | None = None
    """The pooled token, where `tokens` don't begin with a summary token such as CLS."""
    mask: Bool[Tensor, "batch tokens"] | None = None
    """True where a token is real; by default all are."""

    def packed(self) -> Encoded:
        """The same with unit-norm embeddings, the summary token first, and without padding."""
        tokens, mask = self.tokens, self.mask
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if self.summary is not None:
            tokens = torch.cat([self.summary[:, None], tokens], dim=1)
            mask = F.pad(mask, (1, 0), value=True)
        return Encoded(F.normalize(self.embedding, dim=-1), tokens[mask], mask.sum(dim=1).cpu())


class HubEncoder(Encoder):
    """A pretrained model in the hub's layout as an encoder.

    A subclass runs the network in `_images` and `_texts`, of which it implements those of its modalities.

    Args:
        kind: what the spec begins with.
        source: what it goes on with: a folder, or a name on the hub (see `model_files`).
        files: the model's files.
        network: the loaded model.
        pictures: its preprocessing of images; None for a model of texts.
        texts: its preprocessing of texts; None for a model of images.
        settings: whatever else changes the features, for the fingerprint.
    """

    def __init__(
        self,
        kind: str,
        source: str,
        files: ModelFiles,
        network: nn.Module,
        *,
        pictures: PictureProcessor | None = None,
        texts: TextProcessor | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.spec = f"{kind}:{source}"
        self.name = files.name
        self._kind = kind
        self._files = files
        self._network: Any = network
        self._settings = {"kind": kind, "config_sha256": config_sha256(files), **(settings or {})}
        self._processors: dict[Modality, PictureProcessor | TextProcessor] = {}
        if pictures is not None:
            self._processors["image"] = pictures
        if texts is not None:
            self._processors["text"] = texts
        self.modalities = tuple(self._processors)

    def _images(self, inputs: Mapping[str, Tensor]) -> Output:
        """Runs the network on a batch of the picture processor's tensors."""
        raise NotImplementedError

    def _texts(self, ids: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"]) -> Output:
        """Runs the network on a batch of padded token ids; the mask is True at real tokens."""
        raise NotImplementedError

    def fingerprint(self, modality: Modality) -> Fingerprint:
        """The weight files, the revision, the network's description, and the preprocessing."""
        self._require(modality)
        settings = {**self._settings, **self._processors[modality].settings()}
        return Fingerprint(
            # Without the folder, so that a copy elsewhere is the same model.
            name=f"{self._kind}:{self._files.name} {modality}",
            revision=self._files.revision,
            weights_sha256=self._files.weights_sha256,
            preprocessing_sha256=sha256_of_settings(settings),
        )

    def dim(self, modality: Modality) -> int:
        """Length of an embedding."""
        self._require(modality)
        return self._example(modality).embedding.shape[1]

    def width(self, modality: Modality) -> int:
        """Length of a token."""
        self._require(modality)
        return self._example(modality).tokens.shape[1]

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Prepared:
        """Makes one item ready, as the model's own processor or tokenizer does."""
        self._require(modality)
        return self._processors[modality](item)

    @torch.no_grad()
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> Encoded:
        """Runs the model on a batch."""
        self._require(modality)
        if modality == "image":
            return self._images(self._picture_batch(prepared)).packed()
        return self._texts(*self._text_batch(prepared)).packed()

    def _picture_batch(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        """The picture processor's tensors of a batch, where the network is."""
        processor = self._processors["image"]
        assert isinstance(processor, PictureProcessor)
        return {name: value.to(self.device) for name, value in processor.collate(prepared).items()}

    def _text_batch(self, prepared: Sequence[Any]) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
        """A batch's padded token ids, and a mask that is True at real tokens, where the network is."""
        processor = self._processors["text"]
        assert isinstance(processor, TextProcessor)
        ids, mask = processor.collate(prepared)
        return ids.to(self.device), mask.to(self.device)

    def token_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches or cells, where the tokens after the summary are a whole grid."""
        if "image" not in self._processors:
            return None
        pixels = self.preprocess("image", _blank_picture())
        if not isinstance(pixels, Tensor) or pixels.ndim != 3:
            return None  # what the model takes has no fixed shape, such as NaFlex's patches
        height, width = pixels.shape[-2:]
        cells = int(self._example("image").lengths) - 1
        rows = round(math.sqrt(cells * height / width))
        return (rows, cells // rows) if rows and cells % rows == 0 and cells // rows * height == rows * width else None

    def token_texts(self, text: str) -> list[str] | None:
        """What each text token stands for."""
        processor = self._processors.get("text")
        if not isinstance(processor, TextProcessor):
            return None
        pieces = processor.pieces(text)
        added = int(self.forward("text", [processor(text)]).lengths) - len(pieces)
        return ["[summary]"] * added + pieces

    @cached_property
    def _examples(self) -> dict[Modality, Encoded]:
        return {}

    def _example(self, modality: Modality) -> Encoded:
        """One item's features, by which the sizes are known for any network."""
        if modality not in self._examples:
            item = _blank_picture() if modality == "image" else "a"
            prepared = [self.preprocess(modality, item)]
            try:
                self._examples[modality] = self.forward(modality, prepared)
            except (ValueError, TypeError, RuntimeError, IndexError) as error:
                what = "an image" if modality == "image" else "a text"
                raise CheckpointError(
                    f"{self.spec}: the model can't take what its own preprocessing makes of {what} "
                    f"({one_line(error)}); its files don't belong together."
                ) from error
        return self._examples[modality]


def without_registers(tokens: Float[Tensor, "batch tokens width"], registers: int) -> Float[Tensor, "batch kept width"]:
    """The tokens without the registers that some ViTs have behind the CLS (Darcet et al. 2024, ICLR)."""
    return torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], dim=1) if registers else tokens


def _blank_picture() -> Image.Image:
    return Image.new("RGB", (64, 64), "grey")
