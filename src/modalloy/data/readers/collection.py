"""What every reader gives, and what the readers share."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modalloy.data.build import SPLIT_ALIASES, Record, Reject
from modalloy.data.json_kind import json_kind
from modalloy.errors import DataError

MAX_TEXT_BYTES = 2**20
"""A larger caption file isn't read."""

_NUMBERED = re.compile(r"captions?_?[0-9]+")


@dataclass(frozen=True)
class Collection:
    """A collection as its reader found it."""

    root: Path
    """The folder that the records' paths start from."""
    records: tuple[Record, ...] = field(repr=False)
    """One an image, in the collection's order."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """The number of images that a published split has, by split."""
    rejects: tuple[Reject, ...] = field(default=(), repr=False)
    """What the reader itself had to leave out."""


def numbered_captions(names: Iterable[str]) -> list[str]:
    """The names that number an image's captions, in the order given.

    >>> numbered_captions(["path", "caption_0", "caption_1"])
    ['caption_0', 'caption_1']
    """
    return [name for name in names if _NUMBERED.fullmatch(name)]


def id_of_path(path: str) -> str:
    """The id of an image that has none of its own: its path, with ":" for "/" and "%23" for "#".

    >>> id_of_path("train/cat.jpg")
    'train:cat.jpg'
    """
    return path.removeprefix("./").replace("/", ":").replace("#", "%23")


def split_of_name(name: str) -> str | None:
    """The split that a file's or folder's name ends in or starts with, or None.

    >>> split_of_name("train-00007.tar"), split_of_name("flickr30k_val.json"), split_of_name("trains.tar")
    ('train', 'val', None)
    """
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((SPLIT_ALIASES[word] for word in reversed(words) if word in SPLIT_ALIASES), None)


def captions_of(value: Any, where: str) -> tuple[str, ...]:
    """The captions that a JSON value holds: a text, or a list of texts.

    Raises:
        DataError: the value is something else; the message starts with `where`.
    """
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            inside = "a list with " if isinstance(value, list) else ""
            raise DataError(f"{where}: captions must be a text or a list of texts, got {inside}{json_kind(text)}.")
    return tuple(texts)


def captions_of_lines(text: str) -> tuple[str, ...]:
    """The captions that a text file beside a picture holds, one a line.

    >>> captions_of_lines("A cat.\\n\\nA pet.\\n")
    ('A cat.', 'A pet.')
    """
    # Blank lines only lay the file out; but a file with nothing else was meant to hold a caption.
    return tuple(line for line in text.split("\n") if line.strip()) or ("",)


def read_text(path: Path) -> str:
    """A file's text; bytes that aren't UTF-8 become lone surrogates, so that only their captions are lost.

    Raises:
        DataError: the file can't be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); check the path.") from None


def text_lines(path: Path) -> Iterator[str]:
    """A file's lines without their "\\n", read one by one, decoded as `read_text` does.

    Raises:
        DataError: the file can't be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                yield line.decode("utf-8" if number else "utf-8-sig", "surrogateescape").removesuffix("\n")
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
