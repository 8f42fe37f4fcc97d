"""A saved encoder: a folder with `model.safetensors` and, written last, `config.json`, which names its format."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from modalloy.encoders.base import Fingerprint
from modalloy.errors import CheckpointError, DataError
from modalloy.files import atomic_path, read_json, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def packed_weights(module: nn.Module) -> bytes:
    """A module's weights as the bytes of a safetensors file, tied ones under each of their names."""
    weights = module.state_dict().items()
    # Copies, as safetensors refuses tensors that share memory.
    return save({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights})


def save_checkpoint(folder: Path, format: str, weights: bytes, config: Mapping[str, Any]) -> None:
    """Writes the weights, then the configuration with their checksum, so that a folder with a config is whole."""
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(weights)
    checksum = hashlib.sha256(weights).hexdigest()
    write_json(folder / CONFIG, {"format": format, "weights_sha256": checksum, **config})


def read_config(folder: Path, format: str, maker: str) -> dict[str, Any]:
    """The configuration of a saved encoder.

    Args:
        folder: where it was saved.
        format: what its `format` must be.
        maker: the command that writes such folders, for the message.

    Raises:
        CheckpointError: there is none, it is damaged, or it is another format's.
    """
    path = folder / CONFIG
    try:
        config = read_json(path)
    except DataError as error:
        raise CheckpointError(f"{folder} can't be loaded: {error} Name a folder written by `{maker}`.") from None
    found = config.get("format") if isinstance(config, dict) else None
    if found != format:
        raise CheckpointError(
            f"{path} should have the format {format!r}, got {found!r}; name a folder written by `{maker}`."
        )
    return config


def read_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a saved encoder, compared with the checksum in its configuration.

    Raises:
        CheckpointError: the file is missing, damaged, or not the one that the configuration was written with.
    """
    path = folder / WEIGHTS
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror}); copy the whole folder.") from None
    if hashlib.sha256(packed).hexdigest() != config.get("weights_sha256"):
        raise CheckpointError(
            f"{path} is damaged, or isn't the file that {CONFIG} was written with; copy the whole folder."
        )
    try:
        return load(packed)
    except SafetensorError as error:
        raise CheckpointError(f"{path} isn't a safetensors file ({error}); copy the whole folder.") from None


def require_unchanged(expected: Fingerprint, found: Fingerprint, spec: str, user: str) -> None:
    """Refuses an encoder that isn't the one which a saved encoder was made with.

    Raises:
        CheckpointError: with both fingerprints.
    """
    if found.digest != expected.digest:
        raise CheckpointError(
            f"{user} was made with {_described(expected)}, but {spec!r} now is {_described(found)}; "
            f"bring back the encoder that it was made with, or make {user} anew."
        )


def _described(fingerprint: Fingerprint) -> str:
    return (
        f"{fingerprint.name} ({fingerprint.revision}, weights {fingerprint.weights_sha256[:12]}, "
        f"preprocessing {fingerprint.preprocessing_sha256[:12]})"
    )
