"""The alloy: N frozen encoders and the fuser that makes one encoder of them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import nn

from modalloy.encoders import Encoded, Encoder, Fingerprint, Modality, load_encoder
from modalloy.encoders.base import MODALITIES, Prepared, sha256_of_settings
from modalloy.encoders.checkpoint import (
    packed_weights,
    read_config,
    read_weights,
    require_unchanged,
    save_checkpoint,
)
from modalloy.encoders.registry import absolute_spec, relative_spec
from modalloy.errors import CheckpointError, ConfigError, FeatureError, one_line
from modalloy.features import pad
from modalloy.fusion.base import Fuser
from modalloy.fusion.inputs import EncoderFeatures, InputShape
from modalloy.fusion.mixture import Mixture
from modalloy.fusion.rotation import Rotated
from modalloy.fusion.score_fusion import ScoreFusion
from modalloy.fusion.towers import TowerConfig, TowerFuser

FORMAT = "modalloy-alloy-1"
MAKER = "modalloy fuse"


class Alloy(Encoder):
    """Several dual encoders fused into one, which is an encoder again: it embeds, is indexed, and can be fused.

    Its embedding is the folded retrieval vector, whose inner product is the fuser's similarity; its one token is
    that vector.

    Args:
        encoders: the dual encoders, in the order of the fuser's inputs.
        fuser: fitted on their features.
        name: for people.

    Raises:
        ConfigError: an encoder isn't dual, or its widths aren't those of the fuser's input.
    """

    modalities = MODALITIES

    def __init__(self, encoders: Sequence[Encoder], fuser: Fuser, name: str = "alloy") -> None:
        for position, encoder in enumerate(encoders):
            if set(encoder.modalities) != set(MODALITIES):
                raise ConfigError(
                    f"{encoder.name} encodes only {encoder.modalities[0]}s; "
                    "an alloy takes dual encoders: align it with a backbone of the other modality first."
                )
            shape = InputShape(encoder.dim("image"), encoder.width("image"), encoder.width("text"))
            if position >= len(fuser.shapes) or shape != fuser.shapes[position]:
                raise ConfigError(
                    f"{encoder.name} doesn't fit input {position} of the fuser: got widths {asdict(shape)}, "
                    f"the fuser has {[asdict(shape) for shape in fuser.shapes]}."
                )
        if len(encoders) != len(fuser.shapes):
            raise ConfigError(f"the fuser takes {len(fuser.shapes)} encoders, got {len(encoders)}.")
        self.encoders = tuple(encoders)
        self.fuser = fuser.eval()
        self.name = name
        self.spec = "alloy:unsaved"

    def _parts(self) -> Iterable[nn.Module | Encoder]:
        return [self.fuser, *self.encoders]

    def fingerprint(self, modality: Modality) -> Fingerprint:
        """The fuser's weights and configuration, chained with the fingerprints of all encoders."""
        inputs = [encoder.fingerprint(modality).digest for encoder in self.encoders]
        return Fingerprint(
            name=f"alloy of {' and '.join(encoder.name for encoder in self.encoders)}, {modality}",
            revision=FORMAT,
            weights_sha256=hashlib.sha256(self._weights).hexdigest(),
            preprocessing_sha256=sha256_of_settings({"encoders": inputs, "fuser": describe(self.fuser)}),
        )

    def dim(self, modality: Modality) -> int:
        """Width of the retrieval vector."""
        return self.fuser.dim

    def width(self, modality: Modality) -> int:
        """Width of its one token, the retrieval vector."""
        return self.fuser.dim

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Prepared:
        """Makes an item ready for each of its encoders."""
        return tuple(encoder.preprocess(modality, item) for encoder in self.encoders)

    def forward(self, modality: Modality, prepared: Sequence[Prepared]) -> Encoded:
        """Runs every encoder, and the fuser on what they give."""
        return self.fuse(
            modality,
            [
                encoder.forward(modality, [item[position] for item in prepared])
                for position, encoder in enumerate(self.encoders)
            ],
        )

    @torch.no_grad()
    def fuse(self, modality: Modality, encoded: Sequence[Encoded]) -> Encoded:
        """Fuses what the encoders gave for the same items."""
        inputs = []
        for each in encoded:
            tokens, mask = pad(each.tokens, each.lengths)
            inputs.append(EncoderFeatures(each.embedding, tokens, mask).to(self.device))
        vectors = self.fuser.embed(modality, inputs)
        return Encoded(vectors, vectors, torch.ones(len(vectors), dtype=torch.int64))

    def save(self, folder: str | Path) -> None:
        """Writes `model.safetensors`, then `config.json`, so that a folder with a config is whole.

        Encoders that lie in folders are recorded relative to this one, so that a run can be moved as a whole.

        Raises:
            ConfigError: an encoder isn't saved, so that the alloy couldn't be loaded again.
        """
        for encoder in self.encoders:
            if encoder.spec.endswith(":unsaved"):
                raise ConfigError(f"{encoder.name} isn't saved yet; save it before the alloy made of it.")
        folder = Path(folder).resolve()
        config = {
            "name": self.name,
            "encoders": [
                {
                    "spec": relative_spec(encoder.spec, folder),
                    "fingerprints": {m: encoder.fingerprint(m).to_dict() for m in MODALITIES},
                }
                for encoder in self.encoders
            ],
            "fuser": describe(self.fuser),
        }
        save_checkpoint(folder, FORMAT, self._weights, config)
        self.spec = f"alloy:{folder}"

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Loads an alloy and its encoders.

        Raises:
            CheckpointError: the folder holds no alloy, it is damaged, or an encoder isn't the one it was fitted on.
        """
        folder = Path(folder).resolve()
        config = read_config(folder, FORMAT, MAKER)
        encoders = []
        for spec, fingerprints in _recorded_encoders(folder, config):
            encoder = load_encoder(absolute_spec(spec, folder))
            for modality in MODALITIES:
                require_unchanged(
                    fingerprints[modality], encoder.fingerprint(modality), encoder.spec, f"alloy:{folder}"
                )
            encoders.append(encoder)
        alloy = cls(encoders, _load_fuser(folder, config), str(config.get("name", "alloy")))
        alloy.spec = f"alloy:{folder}"
        return alloy

    @cached_property
    def _weights(self) -> bytes:
        return packed_weights(self.fuser)


def saved_fuser(folder: str | Path, encoders: Sequence[Encoder]) -> Fuser:
    """The fuser of a saved alloy, without its encoders, for features of the same encoders.

    Raises:
        CheckpointError: the folder holds no alloy, or it is damaged.
        ConfigError: the alloy was fitted on other encoders than the given ones.
    """
    folder = Path(folder).resolve()
    config = read_config(folder, FORMAT, MAKER)
    recorded = [fingerprints for _, fingerprints in _recorded_encoders(folder, config)]
    found = [{modality: encoder.fingerprint(modality) for modality in MODALITIES} for encoder in encoders]
    if len(recorded) != len(found):
        raise ConfigError(f"alloy:{folder} was fitted on {len(recorded)} encoders, got {len(found)}; give those.")
    for position, (its, mine) in enumerate(zip(recorded, found, strict=True)):
        for modality in MODALITIES:
            if its[modality].digest != mine[modality].digest:
                its_name, my_name = (f"{each.name} ({each.digest[:12]})" for each in (its[modality], mine[modality]))
                raise ConfigError(
                    f"encoder {position} of alloy:{folder} is {its_name}, but here it is {my_name}; "
                    "give the encoders that it was fitted on, in their order."
                )
    return _load_fuser(folder, config)


def _recorded_encoders(folder: Path, config: dict[str, Any]) -> list[tuple[str, dict[Modality, Fingerprint]]]:
    """The spec of each encoder, and the fingerprints it had when the alloy was saved."""
    try:
        return [
            (
                str(recorded["spec"]),
                {m: Fingerprint.from_dict(recorded["fingerprints"][m]) for m in MODALITIES},
            )
            for recorded in config["encoders"]
        ]
    except (KeyError, TypeError, FeatureError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} doesn't describe the alloy's encoders "
            f"({type(error).__name__}: {error}); fuse again."
        ) from None


def describe(fuser: Fuser) -> dict[str, Any]:
    """A fuser's kind and configuration, all but its weights, ready for JSON."""
    shapes = [asdict(shape) for shape in fuser.shapes]
    if isinstance(fuser, TowerFuser):
        return {"kind": "towers", "shapes": shapes, "config": fuser.config.to_dict()}
    if isinstance(fuser, Rotated):
        return {"kind": "rotated", "shapes": shapes, "fuser": describe(fuser.fuser), "dim": fuser.dim}
    if isinstance(fuser, Mixture):
        members = [describe(member) for member in fuser.fusers()]
        return {"kind": "mixture", "shapes": shapes, "members": members, "inputs": list(fuser.inputs)}
    return {"kind": "scores", "shapes": shapes}


def _fuser_of(described: Mapping[str, Any]) -> Fuser:
    """A fuser as `describe` says, with any weights."""
    shapes = [InputShape(**shape) for shape in described["shapes"]]
    if described["kind"] == "towers":
        return TowerFuser(TowerConfig.from_dict(described["config"]), shapes)
    if described["kind"] == "rotated":
        fuser = _fuser_of(described["fuser"])
        return Rotated(fuser, torch.eye(fuser.dim), described["dim"])
    if described["kind"] == "mixture":
        members = [_fuser_of(member) for member in described["members"]]
        return Mixture(members, described["inputs"], [1.0] * (len(members) + len(described["inputs"])), shapes)
    return ScoreFusion([1.0] * len(shapes), shapes)


def _load_fuser(folder: Path, config: dict[str, Any]) -> Fuser:
    weights = read_weights(folder, config)
    try:
        fuser = _fuser_of(config["fuser"])
        fuser.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError, ConfigError) as error:
        raise CheckpointError(
            f"{folder} can't be loaded as an alloy ({one_line(error)}); it may be damaged."
        ) from error
    return fuser
