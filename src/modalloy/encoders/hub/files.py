"""A model's files: from a local folder, or from the hub, whose revision is then pinned."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modalloy.encoders.packaged import weights_sha256
from modalloy.errors import ConfigError, one_line
from modalloy.files import sha256_of_text

_SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class Layout:
    """How a library names the weight files of a model; the defaults are those of transformers."""

    safetensors: tuple[str, ...] = ("model.safetensors", "model-*.safetensors")
    pickles: tuple[str, ...] = ("pytorch_model.bin", "pytorch_model-*.bin")
    """Taken where a folder has no safetensors."""
    config: str | None = "config.json"
    """The file that describes the network; None where there is none."""
    folders: bool = False
    """Whether the folders in the model's folder hold files of it too."""

    def below(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """The patterns of files in the folders in the model's folder, if the layout has those."""
        return tuple(f"*/{pattern}" for pattern in patterns) if self.folders else ()


TRANSFORMERS = Layout()


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model at one revision."""

    name: str
    """The hub's name of the model, or the local folder's last name."""
    folder: Path
    """Where they are."""
    revision: str
    """The commit on the hub, or "local"."""
    layout: Layout = TRANSFORMERS

    @property
    def weights(self) -> list[Path]:
        """The weight files: safetensors, or where a folder has none PyTorch's."""
        below = sorted(path for path in self.folder.iterdir() if path.is_dir()) if self.layout.folders else []
        return [
            path
            for folder in (self.folder, *below)
            for path in _matching(folder, self.layout.safetensors) or _matching(folder, self.layout.pickles)
        ]

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weight file, or over those of its pieces."""
        return _joined([weights_sha256(path) for path in self.weights])

    def settings_sha256(self, prefixes: Sequence[str] = ("",)) -> str:
        """SHA-256 over the small files whose names begin with one of `prefixes`, such as those of the tokenizer."""
        files = _matching(self.folder, (*_SETTINGS, *self.layout.below(_SETTINGS)))
        names = [path.relative_to(self.folder).as_posix() for path in files if path.name.startswith(tuple(prefixes))]
        return _joined([f"{name} {weights_sha256(self.folder / name)}" for name in names])


def model_files(source: str, layout: Layout = TRANSFORMERS) -> ModelFiles:
    """Finds a model's files, and brings them from the hub where they aren't in its cache yet.

    `HF_HUB_OFFLINE=1` is respected: then only the cache is looked at.

    Args:
        source: a folder, or a name on the hub ("openai/clip-vit-base-patch32"), with a branch, tag or commit
            after "@" if it isn't to be the main branch.
        layout: how the model's library names the weight files.

    Raises:
        ConfigError: there is no such folder, and the hub's model can't be had; or it holds no weights.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        # Absolute, so that the files are still found after the working directory has changed.
        folder = folder.resolve()
        found = ModelFiles(folder.name, folder, "local", layout)
    else:
        name, _, revision = source.partition("@")
        if Path(name).expanduser().is_dir():
            raise ConfigError(f"{name} is a folder, which has no revisions; leave out the @{revision}.")
        fetched = _fetch(name, revision or None, layout)
        found = ModelFiles(name, fetched, fetched.name, layout)
    if not found.weights:
        raise ConfigError(
            f"{found.folder} holds no weights ({' or '.join((*layout.safetensors[:1], *layout.pickles[:1]))}); "
            "give the folder of a model saved by its library, or its name on the hub."
        )
    return found


def _fetch(name: str, revision: str | None, layout: Layout) -> Path:
    from huggingface_hub import snapshot_download

    # In folders below, a module without safetensors can't be told from one without weights.
    below = [*layout.below(layout.safetensors), *layout.below(layout.pickles), *layout.below(_SETTINGS)]
    wanted = [*_SETTINGS, *layout.safetensors, *below]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        if not _matching(folder, layout.safetensors):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*wanted, *layout.pickles]))
        return folder
    # The hub's own errors, the disk's, and those of the HTTP library below it, which may be another one next year.
    except Exception as error:
        raise ConfigError(f"There is no folder {name!r}, and {_absence(name, revision, error)}.") from error


def hub_file(name: str, file: str) -> Path:
    """One file of a model on the hub.

    Raises:
        ConfigError: it can't be had.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except Exception as error:
        raise ConfigError(f"As for {file} of {name}, {_reason(error)}.") from error


def _absence(name: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    if not constants.HF_HUB_OFFLINE or isinstance(error, HFValidationError):
        return f"as a model's name it can't be had from the hub ({one_line(error)})"
    at = f" --revision {revision}" if revision else ""
    return (
        f"HF_HUB_OFFLINE is set, but the hub's cache has no model of this name{' and revision' if at else ''}; "
        f"fetch it where there's a network: hf download {name}{at}"
    )


def _reason(error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it isn't in the hub's cache"
    return f"it can't be had from the hub ({one_line(error)})"


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _joined(digests: list[str]) -> str:
    return digests[0] if len(digests) == 1 and " " not in digests[0] else sha256_of_text("\n".join(digests))
