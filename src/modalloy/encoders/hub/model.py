"""Loading the network of a hub model, whole and without noise."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modalloy.encoders.hub.files import ModelFiles
from modalloy.encoders.hub.quiet import quiet
from modalloy.errors import CheckpointError, ConfigError, DataError, ModalloyError, one_line
from modalloy.files import read_json, sha256_of_text

# What a configuration says about how it was made, or how its weights are stored.
_NOTES = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")


def model_type(files: ModelFiles) -> str:
    """What `config.json` says the model is: "clip", "siglip", ...

    Raises:
        CheckpointError: there is no configuration, or it isn't transformers'.
    """
    settings = _config(files)
    return str(settings.get("model_type", "unknown")) if isinstance(settings, dict) else "unknown"


def config_sha256(files: ModelFiles) -> str:
    """SHA-256 of the network's description: of the activations, epsilons, ... that the weights don't tell.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return sha256_of_text(json.dumps(_without_notes(_config(files)), sort_keys=True)) if files.layout.config else ""


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

    require_whole(files)

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


def require_whole(files: ModelFiles) -> None:
    """Refuses files that only work, or work otherwise, with what lies elsewhere.

    Raises:
        ConfigError: there is an adapter, which is used only where peft is installed; or the configuration names a
            kernel on the hub, which is code.
    """
    if (files.folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{files.name} holds an adapter beside its model (adapter_config.json); "
            "merge it into the weights (peft's merge_and_unload) and save the whole model."
        )
    path = files.folder / (files.layout.config or "")
    kernels = [name for name in _attention(_config(files)) if "/" in name] if path.is_file() else []
    if kernels:
        raise ConfigError(
            f"{files.name} needs code of the hub ({kernels[0]}), which modalloy doesn't run; "
            "take attn_implementation out of its config.json."
        )


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
    """What `load` gives; any error that isn't modalloy's own becomes a CheckpointError that names the folder."""
    try:
        return load()
    except ModalloyError:
        raise
    # Damaged files make the library raise nearly anything: OSError, SafetensorError, UnpicklingError, KeyError, ...
    except Exception as error:
        raise CheckpointError(f"{folder} can't be loaded ({type(error).__name__}: {one_line(error)}).") from error


def _config(files: ModelFiles) -> Any:
    try:
        return read_json(files.folder / (files.layout.config or ""))
    except DataError as error:
        raise CheckpointError(f"{files.folder} has no readable {files.layout.config} ({one_line(error)}).") from None


def _without_notes(config: Any) -> Any:
    if isinstance(config, list):
        return [_without_notes(value) for value in config]
    if not isinstance(config, dict):
        return config
    return {key: _without_notes(value) for key, value in config.items() if key not in _NOTES}


def _attention(config: Any, key: str = "") -> Iterator[str]:
    """The values of all `attn_implementation` in a configuration, of its parts too."""
    if isinstance(config, dict):
        for below, value in config.items():
            yield from _attention(value, key if "attn_implementation" in key else below)
    elif isinstance(config, str) and "attn_implementation" in key:
        yield config
