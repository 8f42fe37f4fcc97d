"""Finds weight files that come as Python packages, without importing those packages."""

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from modalloy.errors import ConfigError
from modalloy.files import sha256_of


def packaged_file(module: str, relative: str, install: str) -> Path:
    """Path of a file inside an installed package; the package's code isn't run.

    Args:
        module: top-level module of the package.
        relative: the file's path below the module's folder.
        install: the command that installs the package, for the error.

    Raises:
        ConfigError: the package isn't installed, or lacks the file.
    """
    spec = find_spec(module)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise ConfigError(f"The package with the weights, {module}, isn't installed; install it: {install}")
    path = Path(folders[0]) / relative
    if not path.exists():
        raise ConfigError(f"The package {module} lacks {relative}; install it again: {install}")
    return path


def package_version(distribution: str) -> str:
    """Version of an installed distribution, or "unknown" where it was put there without metadata."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def weights_sha256(path: Path) -> str:
    """SHA-256 of a weight file, computed once a process for each state of the file."""
    status = path.stat()
    return _sha256_of_state(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _sha256_of_state(path: Path, modified: int, size: int) -> str:
    return sha256_of(path)
