"""HACAN's global branch as an encoder: two frozen backbones, each with a head into the space they share."""

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from modalloy.align.heads import GlobalHead, HeadConfig
from modalloy.encoders import Encoded, Encoder, Fingerprint, Modality, load_encoder
from modalloy.encoders.base import MODALITIES, Prepared, sha256_of_settings
from modalloy.encoders.checkpoint import (
    CONFIG,
    packed_weights,
    read_config,
    read_weights,
    require_unchanged,
    save_checkpoint,
)
from modalloy.encoders.registry import absolute_spec, relative_spec
from modalloy.errors import CheckpointError, ConfigError, ModalloyError, one_line

FORMAT = "modalloy-aligned-encoder-1"
MAKER = "modalloy align"


@dataclass(frozen=True)
class Backbone:
    """Which encoder a head was trained on, known without loading it."""

    spec: str
    """What `load_encoder` takes."""
    fingerprint: Fingerprint
    """Of the weights and preprocessing that the head was trained on."""
    width: int
    """Length of its tokens."""


class AlignedEncoder(Encoder):
    """A dual encoder made of an image backbone, a text backbone and a trained global head on each (HACAN).

    Its embedding is the head's output, its tokens are the backbone's. The backbones load on first use, so
    stored features can be projected where the backbones' weights aren't.

    Args:
        backbones: what encodes images, and what encodes texts.
        heads: the head on each; both end in the same length.
        name: for people; by default made of the backbones' specs.
        training: what the heads were trained with, kept in `config.json`.

    Raises:
        ConfigError: a modality lacks its backbone or head, or the heads end in different lengths.
    """

    modalities = MODALITIES

    def __init__(
        self,
        backbones: Mapping[Modality, Backbone],
        heads: Mapping[Modality, GlobalHead],
        *,
        name: str | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        for modality in MODALITIES:
            if modality not in backbones or modality not in heads:
                raise ConfigError(f"An aligned encoder needs a backbone and a head for {modality}s.")
        dims = [heads[modality].config.dim for modality in MODALITIES]
        if dims[0] != dims[1]:
            raise ConfigError(f"Both heads must end in the same length, got {dims[0]} and {dims[1]}.")
        self.backbones = {modality: backbones[modality] for modality in MODALITIES}
        self.heads = nn.ModuleDict({modality: heads[modality] for modality in MODALITIES})
        self.heads.requires_grad_(False).eval()
        self.training = dict(training or {})
        self.name = name or " + ".join(backbone.spec for backbone in self.backbones.values())
        self.spec = "hacan:unsaved"
        self._loaded: dict[Modality, Encoder] = {}
        self._lock = threading.Lock()

    def _parts(self) -> Iterable[nn.Module | Encoder]:
        return [self.heads, *self._loaded.values()]

    def fingerprint(self, modality: Modality) -> Fingerprint:
        """The heads' weights and shape, chained with the fingerprint of the backbone."""
        self._require(modality)
        shape = asdict(self._head(modality).config)
        del shape["dropout"]  # has a part in training alone
        chained = {"backbone": self.backbones[modality].fingerprint.digest, "head": shape}
        return Fingerprint(
            name=f"{self._backbones_names()} {modality}",
            revision=FORMAT,
            weights_sha256=hashlib.sha256(self._weights).hexdigest(),
            preprocessing_sha256=sha256_of_settings(chained),
        )

    def dim(self, modality: Modality) -> int:
        """Length of the shared embedding."""
        self._require(modality)
        return self._head(modality).config.dim

    def width(self, modality: Modality) -> int:
        """Length of the backbone's tokens."""
        self._require(modality)
        return self.backbones[modality].width

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Prepared:
        """Makes one item ready, as the backbone does."""
        return self.backbone(modality).preprocess(modality, item)

    def forward(self, modality: Modality, prepared: Sequence[Prepared]) -> Encoded:
        """Runs the backbone, and the head on its embedding or summary token."""
        return self.project(modality, self.backbone(modality).forward(modality, prepared))

    @torch.no_grad()
    def project(self, modality: Modality, encoded: Encoded) -> Encoded:
        """What this encoder makes of the backbone's output: the head's embedding, the same tokens.

        As a transform for `modalloy.features.derive`: `functools.partial(encoder.project, "image")`.
        """
        self._require(modality)
        head = self._head(modality)
        read = encoded.embedding if head.config.input == "embedding" else _summary_tokens(encoded)
        return Encoded(head(read.to(self.device)), encoded.tokens, encoded.lengths)

    def token_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the image backbone's tokens."""
        return self.backbone("image").token_grid()

    def token_texts(self, text: str) -> list[str] | None:
        """What the text backbone's tokens stand for."""
        return self.backbone("text").token_texts(text)

    def backbone(self, modality: Modality) -> Encoder:
        """The backbone, loaded on first use and checked against the one the head was trained on.

        Raises:
            CheckpointError: its weights or preprocessing are others.
        """
        self._require(modality)
        # Worker threads that preprocess must not each load a copy.
        with self._lock:
            if modality not in self._loaded:
                recorded = self.backbones[modality]
                encoder = load_encoder(recorded.spec)
                require_unchanged(recorded.fingerprint, encoder.fingerprint(modality), recorded.spec, self.spec)
                self._loaded[modality] = encoder.to(self.device)
            return self._loaded[modality]

    def save(self, folder: str | Path) -> None:
        """Writes `model.safetensors` and, last, `config.json` into `folder`; sets `spec` to that folder."""
        folder = Path(folder)
        config = {
            "name": self.name,
            "backbones": {
                modality: {**asdict(backbone), "spec": relative_spec(backbone.spec, folder)}
                for modality, backbone in self.backbones.items()
            },
            "heads": {modality: asdict(self._head(modality).config) for modality in MODALITIES},
            "training": self.training,
        }
        save_checkpoint(folder, FORMAT, self._weights, config)
        self.spec = _spec(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Loads what `save` wrote; the backbones follow on first use.

        Raises:
            CheckpointError: the folder isn't an aligned encoder's, or is damaged.
        """
        folder = Path(folder)
        config = read_config(folder, FORMAT, MAKER)
        try:
            backbones: dict[Modality, Backbone] = {}
            heads: dict[Modality, GlobalHead] = {}
            for modality in MODALITIES:
                recorded = config["backbones"][modality]
                fingerprint = Fingerprint.from_dict(recorded["fingerprint"])
                backbones[modality] = Backbone(absolute_spec(recorded["spec"], folder), fingerprint, recorded["width"])
                shape = config["heads"][modality]
                heads[modality] = GlobalHead(HeadConfig(**{**shape, "widths": tuple(shape["widths"])}))
            encoder = cls(backbones, heads, name=config["name"], training=config["training"])
        except (KeyError, TypeError, AttributeError, ModalloyError) as error:
            raise CheckpointError(
                f"{folder / CONFIG} isn't whole ({type(error).__name__}: {error}); align again."
            ) from error
        try:
            encoder.heads.load_state_dict(read_weights(folder, config))
        except RuntimeError as error:
            reason = one_line(error)
            raise CheckpointError(f"{folder} doesn't hold the heads' weights ({reason}); align again.") from None
        encoder.spec = _spec(folder)
        return encoder

    def _backbones_names(self) -> str:
        # Not the specs: a fingerprint mustn't depend on which folder a backbone lies in.
        recorded = ((modality, backbone.fingerprint.name) for modality, backbone in self.backbones.items())
        return " + ".join(name.removesuffix(f" {modality}") for modality, name in recorded)

    def _head(self, modality: Modality) -> GlobalHead:
        head = self.heads[modality]
        assert isinstance(head, GlobalHead)
        return head

    @cached_property
    def _weights(self) -> bytes:
        return packed_weights(self.heads)


def _summary_tokens(encoded: Encoded) -> Float[Tensor, "batch width"]:
    """Each item's first token."""
    first = encoded.lengths.cumsum(0) - encoded.lengths
    return encoded.tokens[first.to(encoded.tokens.device)]


def _spec(folder: Path) -> str:
    # Absolute, so that the spec still names the folder after the working directory has changed.
    return f"hacan:{folder.resolve()}"
