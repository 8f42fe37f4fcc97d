"""Imports the checkpoints that HADA's authors publish (arXiv 2301.04742, code m2man/HADA and m2man/HADA-LAVIS).

A checkpoint is a torch pickle with a state dict per modality (`img_encoder`, `cap_encoder`), the matching head
(`discriminator`), the temperature, and in the second stage the weights of the similarity. By its keys it is HADA of
the first stage (BatchNorm keys), of the second (`weight_albef`), the LAVIS variant (`weight_1`, perhaps `weight_0`
and `weight_2`) or the baseline B2 (one linear layer).
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modalloy.encoders import Encoder, Modality, load_encoder
from modalloy.errors import CheckpointError, ConfigError
from modalloy.fusion import Alloy, InputShape, TowerConfig, TowerFuser
from modalloy.fusion.original_hada import OriginalHadaConfig
from modalloy.interop.hada_checkpoint_keys import (
    B2,
    B2_UNUSED,
    MATCHING,
    MODALITY_KEYS,
    TOWER,
    load_published,
    require_shallow,
)

Variant = Literal["HADA stage 1", "HADA stage 2", "HADA-LAVIS", "B2"]

_ENTRIES = {*MODALITY_KEYS.values(), "discriminator"}
_WEIGHTS = {"weight_albef", "weight_0", "weight_1", "weight_2"}


@dataclass(frozen=True)
class HadaCheckpoint:
    """What a published checkpoint holds, as our model."""

    fuser: TowerFuser
    """The two towers, the similarity's weights and the matching head."""
    variant: Variant
    """Which of the authors' models it is."""
    temperature: float | None
    """Which the training ended with; a ranking doesn't need it."""
    epoch: int | None
    """Epoch that it was saved after, counted from 0."""
    left_out: tuple[str, ...]
    """What the file also holds and the model doesn't use."""


def read_hada_checkpoint(
    path: str | Path,
    shapes: Sequence[InputShape],
    *,
    lavis: Literal["repaired", "faithful"] = "repaired",
    mean: float = OriginalHadaConfig.mean,
    std: float = OriginalHadaConfig.std,
) -> HadaCheckpoint:
    """Reads a published checkpoint as a fuser of two encoders' features, without pickled code being run.

    Args:
        path: the file, `best.pth.tar`.
        shapes: the widths of the two encoders that it was trained on, in its order (ALBEF, then LightningDOT).
        lavis: the authors' code for BLIP and CLIP gives the first encoder's tokens to the second's branch, cut from
            the batch's packed tokens by the second's token counts, so that an embedding depends on its batch.
            "repaired" gives each branch its own tokens; "faithful" does as the authors do, which gives their
            embeddings for batches of the same items in the same order.
        mean: taken off the unit-norm tokens and embeddings; the default is the one of the authors' features.
        std: divides them then.

    Raises:
        CheckpointError: the file is no such checkpoint, needs more than tensors and numbers to be unpickled, or is a
            variant with deeper layers.
        ConfigError: the shapes aren't those of the encoders it was trained on.
    """
    if lavis not in ("repaired", "faithful"):
        raise ConfigError(f"lavis must be 'repaired' or 'faithful', got {lavis!r}.")
    if len(shapes) != 2:
        raise ConfigError(f"A HADA checkpoint fuses two encoders, got {len(shapes)}; name its two, in its order.")
    checkpoint = _unpickle(path)
    variant = _variant(path, checkpoint)
    if lavis == "faithful" and variant != "HADA-LAVIS":
        raise ConfigError(
            f"lavis='faithful' is for checkpoints of HADA-LAVIS; {path} is one of {variant}: leave it out."
        )
    weights = _similarity(path, checkpoint)
    original = OriginalHadaConfig(
        norm="batch" if any(key.endswith("running_mean") for key in checkpoint["img_encoder"]) else "none",
        mean=mean,
        std=std,
        second_tokens="first" if lavis == "faithful" else "own",
    )
    config = _config(path, checkpoint, variant, original, weights)
    fuser = TowerFuser(config, shapes)
    left_out = _load(path, checkpoint, fuser)
    if weights:
        with torch.no_grad():
            fuser.similarity.alpha.copy_(torch.tensor(weights))
    others = sorted(set(checkpoint) - _ENTRIES - _WEIGHTS - {"epoch", "temp_para"})
    return HadaCheckpoint(
        fuser.eval(), variant, _number(checkpoint, "temp_para"), _epoch(checkpoint), (*others, *left_out)
    )


@dataclass(frozen=True)
class ImportedHada:
    """An alloy made from a published checkpoint."""

    alloy: Alloy
    """Saved, so that its spec is "alloy:<folder>"."""
    checkpoint: HadaCheckpoint
    """What the file held."""

    def summary(self) -> dict[str, Any]:
        """What was imported, ready for JSON."""
        return {
            "spec": self.alloy.spec,
            "variant": self.checkpoint.variant,
            "inputs": [encoder.spec for encoder in self.alloy.encoders],
            "dim": self.alloy.fuser.dim,
            "similarity_weights": self.checkpoint.fuser.similarity().tolist(),
            "temperature": self.checkpoint.temperature,
            "epoch": self.checkpoint.epoch,
            "left_out": list(self.checkpoint.left_out),
            "config": self.checkpoint.fuser.config.to_dict(),
        }


def import_hada_checkpoint(
    path: str | Path,
    inputs: Sequence[Encoder | str],
    out: str | Path,
    *,
    lavis: Literal["repaired", "faithful"] = "repaired",
    mean: float = OriginalHadaConfig.mean,
    std: float = OriginalHadaConfig.std,
    name: str | None = None,
) -> ImportedHada:
    """Makes an alloy of two encoders and a published checkpoint, saved in `out`.

    Args:
        path: the file, `best.pth.tar`.
        inputs: the two encoders that it was trained on, or their specs, in its order (ALBEF, then LightningDOT).
        out: folder of the alloy.
        lavis: see `read_hada_checkpoint`.
        mean: see `read_hada_checkpoint`.
        std: see `read_hada_checkpoint`.
        name: the alloy's name for people; by default the variant's.

    Raises:
        CheckpointError: see `read_hada_checkpoint`.
        ConfigError: the encoders don't fit the checkpoint, or can't be loaded again because they aren't saved.
    """
    encoders = [load_encoder(each) if isinstance(each, str) else each for each in inputs]
    shapes = [InputShape(each.dim("image"), each.width("image"), each.width("text")) for each in encoders]
    checkpoint = read_hada_checkpoint(path, shapes, lavis=lavis, mean=mean, std=std)
    alloy = Alloy(encoders, checkpoint.fuser, name or f"{checkpoint.variant}, imported")
    alloy.save(out)
    return ImportedHada(alloy, checkpoint)


def _unpickle(path: str | Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} doesn't exist; name the authors' best.pth.tar.") from None
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read ({error.strerror}); name the authors' best.pth.tar, whole."
        ) from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} isn't a PyTorch checkpoint that can be read: it is damaged, or holds more than tensors and "
            f"numbers, which could run code ({_first_line(error)}); save its state dicts alone."
        ) from None
    except Exception:  # torch.load raises nearly anything for a damaged file
        raise CheckpointError(f"{path} isn't a PyTorch checkpoint, or is damaged; copy it again.") from None
    if not isinstance(checkpoint, dict) or not set(checkpoint) >= _ENTRIES:
        held = sorted(map(str, checkpoint))[:8] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise CheckpointError(f"{path} isn't a HADA checkpoint: it must hold {sorted(_ENTRIES)}, got {held}.")
    for entry in _ENTRIES:
        if not isinstance(checkpoint[entry], dict) or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in checkpoint[entry].items()
        ):
            raise CheckpointError(f"{path}: its {entry!r} must be a state dict, names with tensors; copy it again.")
    if unknown := {key for key in checkpoint if str(key).startswith("weight") and key not in _WEIGHTS}:
        raise CheckpointError(f"{path} weighs similarities by {sorted(unknown)}, which aren't known to modalloy.")
    return checkpoint


def _variant(path: str | Path, checkpoint: Mapping[str, Any]) -> Variant:
    for entry in sorted(_ENTRIES):
        require_shallow(path, entry, checkpoint[entry])
    if any(key.startswith("enc.linear.") for key in checkpoint["img_encoder"]):
        return "B2"
    if "weight_1" in checkpoint:
        return "HADA-LAVIS"
    return "HADA stage 2" if "weight_albef" in checkpoint else "HADA stage 1"


def _similarity(path: str | Path, checkpoint: Mapping[str, Any]) -> tuple[float, ...]:
    """The inputs' shares of the similarity: none, the first one's, or both."""
    given = {key: _number(checkpoint, key) for key in sorted(_WEIGHTS & set(checkpoint))}
    numbers = {key: value for key, value in given.items() if value is not None}
    if len(numbers) < len(given) or not all(0 <= value < float("inf") for value in numbers.values()):
        raise CheckpointError(f"{path}: the similarity's weights must be numbers of 0 or more, got {given}.")
    if set(numbers) == {"weight_0", "weight_1", "weight_2"} and sum(numbers.values()) > 0:
        total = sum(numbers.values())
        return numbers["weight_1"] / total, numbers["weight_2"] / total
    if set(numbers) in ({"weight_albef"}, {"weight_1"}):
        (share,) = numbers.values()
        if share <= 1:
            return (share,) if share > 0 else ()
    elif not numbers:
        return ()
    raise CheckpointError(
        f"{path}: the similarity's weights must be weight_albef or weight_1, of 1 at most, or weight_0, weight_1 and "
        f"weight_2, which add up to more than 0; got {given}."
    )


def _config(
    path: str | Path,
    checkpoint: Mapping[str, Any],
    variant: Variant,
    original: OriginalHadaConfig,
    weights: tuple[float, ...],
) -> TowerConfig:
    state = checkpoint["img_encoder"]
    weighted_inputs = tuple(range(len(weights)))
    try:
        if variant == "B2":
            return TowerConfig(
                "concat-linear",
                output_dim=len(state["enc.linear.0.weight"]),
                dropout=0.0,
                start="random",
                weighted_inputs=weighted_inputs,
            )
        return TowerConfig(
            "hada-original",
            token_dim=len(state["enc.gcn.trans_1.linear.0.weight"]),
            heads=state["enc.gcn.gcn.conv.0.att"].shape[1],
            activation="none",
            output_dim=len(state["enc.lin.linear.0.weight"]),
            dropout=0.3 if original.norm == "batch" else 0.7,
            start="random",
            weighted_inputs=weighted_inputs,
            original=original,
        )
    except (KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path}: its 'img_encoder' lacks {error}; got {sorted(state)}.") from None


def _load(path: str | Path, checkpoint: Mapping[str, Any], fuser: TowerFuser) -> list[str]:
    """Fills the fuser; gives the keys of tensors that the authors' code never uses."""
    prefixes, unused = (B2, B2_UNUSED) if fuser.config.method == "concat-linear" else (TOWER, frozenset[str]())
    parts: list[tuple[str, nn.Module, dict[str, str]]] = [("discriminator", fuser.matching, MATCHING)]
    modalities: tuple[Modality, ...] = ("image", "text")
    parts += [(MODALITY_KEYS[modality], fuser.towers[modality], prefixes) for modality in modalities]
    left_out = []
    for entry, module, names in parts:
        left_out += [f"{entry}.{key}" for key in load_published(path, entry, checkpoint[entry], module, names, unused)]
    return left_out


def _number(checkpoint: Mapping[str, Any], key: str) -> float | None:
    value = checkpoint.get(key)
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.item())
    return float(value) if isinstance(value, int | float) else None


def _epoch(checkpoint: Mapping[str, Any]) -> int | None:
    number = _number(checkpoint, "epoch")
    return None if number is None else int(number)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
