"""What every reader gives, and what the readers share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modalloy.data.build import Record
from modalloy.errors import DataError


@dataclass(frozen=True)
class Collection:
    """A collection as its reader found it."""

    root: Path
    """The folder that the records' paths start from."""
    records: tuple[Record, ...] = field(repr=False)
    """One an image, in the collection's order."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """The number of images that a published split has, by split."""


def id_of_path(path: str) -> str:
    """The id of an image that has none of its own: its path, with ":" for "/" and "%23" for "#".

    >>> id_of_path("train/cat.jpg")
    'train:cat.jpg'
    """
    return path.removeprefix("./").replace("/", ":").replace("#", "%23")


def read_text(path: Path) -> str:
    """A file's text; bytes that aren't UTF-8 become lone surrogates, so that only their captions are lost.

    Raises:
        DataError: the file can't be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); check the path.") from None


def parse_json(text: str, where: str) -> Any:
    """The value that a JSON text stands for.

    Raises:
        DataError: the text isn't JSON; the message starts with `where`.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}).") from None


def image_folder(images: str | Path | None, default: Path) -> Path:
    """The image folder asked for, else the default one.

    Raises:
        DataError: the folder asked for isn't there.
    """
    if images is not None and not Path(images).is_dir():
        raise DataError(f"the image folder {images} isn't there; check the path.")
    return default if images is None else Path(images)
