"""HACAN as an encoder: two frozen backbones, each with a head into the space they share, and perhaps a local branch."""

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from modalloy.align.backbone import Backbone
from modalloy.align.cross_attention import CrossAttention
from modalloy.align.cross_layer import LocalBranch, LocalConfig
from modalloy.align.heads import GlobalHead, HeadConfig
from modalloy.align.local_similarity import Tokens
from modalloy.encoders import Encoded, Encoder, Fingerprint, Level, Modality, load_encoder
from modalloy.encoders.base import MODALITIES, Prepared, sha256_of_settings
from modalloy.encoders.checkpoint import (
    CONFIG,
    packed_weights,
    read_config,
    read_weights,
    require_unchanged,
    save_checkpoint,
)
from modalloy.encoders.mid import MidLevel
from modalloy.errors import CheckpointError, ConfigError, ModalloyError, one_line

FORMAT = "modalloy-aligned-encoder-1"
MAKER = "modalloy align"


class AlignedEncoder(Encoder):
    """A dual encoder made of an image backbone, a text backbone and a trained global head on each (HACAN).

    Its embedding is the head's output, its tokens are the backbone's. The backbones load on first use, so
    stored features can be projected where the backbones' weights aren't. Where it has a local branch, that compares
    the tokens of images and captions, to rank anew what the embeddings found: see `project_tokens`.

    Args:
        backbones: what encodes images, and what encodes texts.
        heads: the head on each; both end in the same length.
        name: for people; by default made of the backbones' specs.
        training: what the heads were trained with, kept in `config.json`.
        local: the trained local branch, if there is one.
        mid: for each modality whose earlier tokens it reads, what gives them (see `MidLevel`).

    Raises:
        ConfigError: a modality lacks its backbone or head, the heads end in different lengths, or the local branch
            was made for tokens of other widths.
    """

    modalities = MODALITIES

    def __init__(
        self,
        backbones: Mapping[Modality, Backbone],
        heads: Mapping[Modality, GlobalHead],
        *,
        name: str | None = None,
        training: Mapping[str, Any] | None = None,
        local: LocalBranch | None = None,
        mid: Mapping[Modality, Backbone] | None = None,
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
        self.mid = dict(mid or {})
        self.local = local
        if local is not None:
            _require_widths(local.config, self.backbones, self.mid)
            local.requires_grad_(False).eval()
        self.training = dict(training or {})
        self.name = name or " + ".join(backbone.spec for backbone in self.backbones.values())
        self.spec = "hacan:unsaved"
        self._loaded: dict[tuple[Modality, Level], Encoder] = {}
        self._lock = threading.Lock()

    def _parts(self) -> Iterable[nn.Module | Encoder]:
        return [self._trained, *self._loaded.values()]

    def fingerprint(self, modality: Modality) -> Fingerprint:
        """The heads' weights and shape, chained with the fingerprint of the backbone."""
        self._require(modality)
        shape = asdict(self._head(modality).config)
        del shape["dropout"]  # has a part in training alone
        chained: dict[str, Any] = {"backbone": self.backbones[modality].fingerprint.digest, "head": shape}
        if self.local is not None:
            mid = {each: backbone.fingerprint.digest for each, backbone in self.mid.items()}
            chained["local"] = {"shape": asdict(self.local.config), "mid": mid}
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
        read = encoded.embedding if head.config.input == "embedding" else summary_tokens(encoded)
        return Encoded(head(read.to(self.device)), encoded.tokens, encoded.lengths)

    @torch.no_grad()
    def project_tokens(
        self,
        modality: Modality,
        features: Mapping[Level, tuple[Float[Tensor, "packed width"], Int[Tensor, "items"]]],
    ) -> dict[Level, Tokens]:
        """What the local branch makes of a backbone's tokens, once per item; `cross_layer_similarity` scores it.

        Args:
            modality: images or captions.
            features: packed tokens and their lengths, of each level that the branch's terms read, as the stores of
                the backbone and of its mid level give them, or `backbone(modality, level)` for new items.

        Raises:
            ConfigError: there is no local branch.
            DataError: the branch has no map of a level.
        """
        self._require(modality)
        return self.branch().project_packed(modality, features)

    def branch(self) -> LocalBranch:
        """The local branch, where one is needed.

        Raises:
            ConfigError: there is none.
        """
        if self.local is None:
            raise ConfigError(f"{self.spec} has no local branch; align with one (--align.local.dim 256).")
        return self.local

    def token_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the image backbone's tokens."""
        return self.backbone("image").token_grid()

    def token_texts(self, text: str) -> list[str] | None:
        """What the text backbone's tokens stand for."""
        return self.backbone("text").token_texts(text)

    def backbone(self, modality: Modality, level: Level = "high") -> Encoder:
        """The backbone, or its mid level, loaded on first use and checked against what was trained on.

        Raises:
            ConfigError: no mid level of this modality is read.
            CheckpointError: its weights or preprocessing are others.
        """
        recorded = self.recorded(modality, level)
        base = self.backbone(modality) if level == "mid" else None
        # Worker threads that preprocess must not each load a copy.
        with self._lock:
            if (modality, level) not in self._loaded:
                encoder = load_encoder(recorded.spec) if base is None else MidLevel(base)
                require_unchanged(recorded.fingerprint, encoder.fingerprint(modality), recorded.spec, self.spec)
                self._loaded[modality, level] = encoder.to(self.device)
            return self._loaded[modality, level]

    def recorded(self, modality: Modality, level: Level = "high") -> Backbone:
        """What the backbone, or its mid level, was when this was trained; nothing is loaded.

        Raises:
            ConfigError: no mid level of this modality is read.
        """
        self._require(modality)
        if level == "mid" and modality not in self.mid:
            raise ConfigError(f"{self.spec} reads no mid level of {modality}s.")
        return self.backbones[modality] if level == "high" else self.mid[modality]

    def save(self, folder: str | Path) -> None:
        """Writes `model.safetensors` and, last, `config.json` into `folder`; sets `spec` to that folder."""
        folder = Path(folder)
        config = {
            "name": self.name,
            "backbones": {modality: backbone.to_dict(folder) for modality, backbone in self.backbones.items()},
            "heads": {modality: asdict(self._head(modality).config) for modality in MODALITIES},
            "training": self.training,
        }
        if self.local is not None:
            mid = {modality: backbone.to_dict(folder) for modality, backbone in self.mid.items()}
            config["local"] = {"shape": asdict(self.local.config), "mid": mid}
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
                backbones[modality] = Backbone.from_dict(config["backbones"][modality], folder)
                shape = config["heads"][modality]
                heads[modality] = GlobalHead(HeadConfig(**{**shape, "widths": tuple(shape["widths"])}))
            local, mid = _local_branch(config.get("local"), folder)
            encoder = cls(backbones, heads, name=config["name"], training=config["training"], local=local, mid=mid)
        except (KeyError, TypeError, AttributeError, ModalloyError) as error:
            raise CheckpointError(
                f"{folder / CONFIG} isn't whole ({type(error).__name__}: {error}); align again."
            ) from error
        try:
            encoder._trained.load_state_dict(read_weights(folder, config))
        except RuntimeError as error:
            reason = one_line(error)
            raise CheckpointError(f"{folder} doesn't hold the trained weights ({reason}); align again.") from None
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
        return packed_weights(self._trained)

    @property
    def _trained(self) -> nn.ModuleDict:
        """All that has weights of its own."""
        return self.heads if self.local is None else nn.ModuleDict({**dict(self.heads.items()), "local": self.local})


def _require_widths(config: LocalConfig, high: Mapping[Modality, Backbone], mid: Mapping[Modality, Backbone]) -> None:
    for modality in MODALITIES:
        for level, backbone in (("high", high.get(modality)), ("mid", mid.get(modality))):
            width, made_for = backbone and backbone.width, getattr(config, f"{modality}_{level}")
            if width != made_for:
                raise ConfigError(
                    f"The local branch was made for {modality} tokens of the level {level!r} that are {made_for} wide, "
                    f"got {width}."
                )


def _local_branch(
    recorded: Mapping[str, Any] | None, folder: Path
) -> tuple[LocalBranch | None, dict[Modality, Backbone]]:
    """The local branch that a configuration describes, without its weights, and what gives its mid levels."""
    if recorded is None:
        return None, {}
    shape = recorded["shape"]
    config = LocalConfig(**{**shape, "attention": CrossAttention(**shape["attention"])})
    mid = {each: Backbone.from_dict(recorded["mid"][each], folder) for each in MODALITIES if each in recorded["mid"]}
    return LocalBranch(config), mid


def summary_tokens(encoded: Encoded) -> Float[Tensor, "batch width"]:
    """Each item's first token."""
    first = encoded.lengths.cumsum(0) - encoded.lengths
    return encoded.tokens[first.to(encoded.tokens.device)]


def _spec(folder: Path) -> str:
    # Absolute, so that the spec still names the folder after the working directory has changed.
    return f"hacan:{folder.resolve()}"
