"""Loading the network of a hub model, whole and without noise."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modalloy.encoders.hub.files import ModelFiles
from modalloy.encoders.hub.quiet import quiet
from modalloy.errors import CheckpointError, ConfigError, DataError
from modalloy.files import read_json


def model_type(files: ModelFiles) -> str:
    """What `config.json` says the model is: "clip", "siglip", ...

    Raises:
        CheckpointError: there is no configuration, or it isn't transformers'.
    """
    path = files.folder / "config.json"
    try:
        settings = read_json(path)
    except DataError as error:
        raise CheckpointError(f"{files.folder} has no readable config.json ({_line(error)}).") from None
    return str(settings.get("model_type", "unknown")) if isinstance(settings, dict) else "unknown"


def load_model(architecture: str, files: ModelFiles, *, without: Sequence[str] = (), **options: Any) -> nn.Module:
    """A network of transformers in float32, frozen, in evaluation mode.

    Args:
        architecture: the class of transformers, such as "CLIPModel".
        files: its files; safetensors are preferred, and a pickle is read with weights_only.
        without: beginnings of the names of weights that the file may lack, since they aren't used.
        options: for `from_pretrained`, such as `add_pooling_layer=False`.

    Raises:
        CheckpointError: the files can't be read, or lack weights, which would otherwise be random numbers.
    """
    return load_and_list_missing(architecture, files, without=without, **options)[0]


def load_and_list_missing(
    architecture: str, files: ModelFiles, *, without: Sequence[str] = (), **options: Any
) -> tuple[nn.Module, list[str]]:
    """The same as `load_model`, with the names of those weights that the files lack and may lack."""
    import transformers

    def load() -> tuple[nn.Module, dict[str, Any]]:
        return getattr(transformers, architecture).from_pretrained(
            files.folder,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )

    with quiet():
        model, report = or_checkpoint_error(files.folder, load)
    missing = sorted(report["missing_keys"])
    lacking = [name for name in missing if not name.startswith(tuple(without))]
    lacking += [str(entry[0]) for entry in report.get("mismatched_keys", [])]
    if lacking:
        raise CheckpointError(
            f"{files.folder} lacks {len(lacking)} weights of a {architecture}, such as {lacking[0]}; "
            "it holds another kind of model, or is damaged."
        )
    return model.requires_grad_(False).eval(), missing


def require_model_type(files: ModelFiles, kind: str, expected: Sequence[str]) -> str:
    """The files' model type; a ConfigError unless it is one of the `expected`."""
    got = model_type(files)
    if got not in expected:
        raise ConfigError(
            f"{files.name} holds a model of type {got!r}, but {kind!r} takes {' or '.join(map(repr, expected))}; "
            "use the kind of encoder that is made for it."
        )
    return got


def or_checkpoint_error(folder: Path, load: Callable[[], Any]) -> Any:
    """What `load` gives; any error of it is a CheckpointError that names the folder."""
    try:
        return load()
    # Damaged files make the library raise nearly anything: OSError, SafetensorError, UnpicklingError, KeyError, ...
    except Exception as error:
        raise CheckpointError(f"{folder} can't be loaded ({type(error).__name__}: {_line(error)}).") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
