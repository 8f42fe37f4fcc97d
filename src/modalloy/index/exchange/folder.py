"""An exported folder: there whole or not at all, and what modalloy says of it in a file beside the peers'."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modalloy.errors import ConfigError, DataError
from modalloy.files import read_json, write_json
from modalloy.index.base import Head

NAME = "modalloy.json"
_FORMAT = "modalloy-exchange-1"


@contextmanager
def new_folder(folder: str | Path, head: Head) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Gives a temporary folder to write to, which becomes `folder` at the end, and a dict for what to say of it.

    Raises:
        ConfigError: there is something at `folder` already.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} isn't empty; export to a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".partial-{folder.name}")
    # What a killed export left.
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        said: dict[str, Any] = {}
        yield temporary, said
        write_json(temporary / NAME, {"format": _FORMAT, "head": head.to_dict(), **said})
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def head_of_folder(folder: Path) -> Head | None:
    """What modalloy said of the index that a folder was exported from; None if another tool made the folder.

    Raises:
        DataError: there is no such folder, or the file is damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} isn't a folder; check the path.")
    path = folder / NAME
    if not path.is_file():
        return None
    value = read_json(path)
    if not isinstance(value, Mapping) or value.get("format") != _FORMAT or not isinstance(value.get("head"), Mapping):
        raise DataError(f"{path} isn't what modalloy writes there; export the folder again.")
    return Head.from_dict(value["head"], str(path))
