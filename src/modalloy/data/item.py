"""One image with its captions, and what its fields may be."""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from modalloy.data.json_kind import json_kind
from modalloy.data.metadata import NO_METADATA, Metadata, MetaValue
from modalloy.errors import DataError

SPLITS = ("train", "val", "tune", "test", "unused", "inputs")
"""val chooses for the inputs (alignment), tune chooses for the fusion, test is looked at once.

unused is only indexed; on inputs, instead of train, the inputs may be aligned, so that the fusion's pairs are foreign
to them."""

BLANK = "is blank"
"""What `caption_problem` says of a caption that is as none."""

_BAD_IN_ID = re.compile(r"[#/\x00-\x1f\x7f]")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Item:
    """One image with its captions; any number of captions, none where the image is only to be indexed.

    >>> Item("cat", "images/cat.jpg", "0" * 64, "train", ("A black cat.",)).caption_ids
    ['cat#0']

    Raises:
        DataError: a field can't be what it is.
    """

    id: str
    """Unique in the collection; without "#" (caption ids are "<id>#<number>"), "/" and control characters."""
    path: str
    """Where the image file is, relative to the manifest's root, with "/"; never outside that root."""
    sha256: str
    """SHA-256 of the image file, 64 hexadecimal digits."""
    split: str
    """One of `SPLITS`."""
    captions: tuple[str, ...]
    """Each not blank and encodable as UTF-8."""
    family: str | None = None
    """Near-identical images share a family, so that they are never each other's negatives."""
    metadata: Mapping[str, MetaValue] = field(default_factory=lambda: NO_METADATA)
    """What else is known of it, to filter answers by; see `Metadata`. Nothing is trained on it."""

    def __post_init__(self) -> None:
        check_id(self.id)
        check_path(self.path)
        if not _SHA256.fullmatch(self.sha256):
            raise DataError(f"item {self.id!r}: sha256 must be 64 hexadecimal digits, got {self.sha256!r}.")
        if self.split not in SPLITS:
            raise DataError(f"item {self.id!r}: split must be one of {_listed(SPLITS)}, got {self.split!r}.")
        for number, caption in enumerate(self.captions):
            if (problem := caption_problem(caption)) is not None:
                raise DataError(f"item {self.id!r}: caption {number} {problem}; mend it or leave it out.")
        if self.family is not None and (not self.family.strip() or not _is_utf8(self.family)):
            raise DataError(f"item {self.id!r}: a family is a name in UTF-8 or null, got {self.family!r}.")
        if not isinstance(self.metadata, Metadata):
            object.__setattr__(self, "metadata", _metadata(self.id, self.metadata))

    @property
    def caption_ids(self) -> list[str]:
        """The captions' ids: "<id>#0", "<id>#1", ..."""
        return [f"{self.id}#{number}" for number in range(len(self.captions))]


_KEYS = tuple(entry.name for entry in fields(Item))
_OPTIONAL = ("family", "metadata")


def check_id(id: str) -> None:
    """Raises a DataError unless `id` can be an item's id."""
    if not id.strip() or _BAD_IN_ID.search(id) or not _is_utf8(id):
        raise DataError(
            f"the id {id!r} can't be used; an id is UTF-8, not blank, without '#', '/', control characters."
        )


def check_path(path: str) -> None:
    """Raises a DataError unless `path` is a relative POSIX path that stays inside its root."""
    parts = path.split("/")
    # On Windows a drive letter or a backslash could lead out of the root.
    elsewhere = parts[0] == "" or ".." in parts or "\\" in path or path[1:2] == ":"
    if elsewhere or path == "." or "\x00" in path:
        raise DataError(
            f"the path {path!r} isn't inside the image folder; paths must be relative to it, "
            "written with '/', and without '..'."
        )
    if not _is_utf8(path):
        raise DataError(f"the path {path!r} isn't UTF-8; rename the file.")


def is_path(path: str | None) -> bool:
    """Whether `check_path` lets a path pass.

    >>> is_path("sub/cat.png"), is_path("../cat.png"), is_path(None)
    (True, False, False)
    """
    try:
        check_path(path or "")
    except DataError:
        return False
    return True


def caption_problem(caption: str) -> str | None:
    """What keeps a text from being a caption (`BLANK`, "isn't UTF-8"), or None."""
    if not caption.strip():
        return BLANK
    return None if _is_utf8(caption) else "isn't UTF-8"


def _is_utf8(text: str) -> bool:
    """Bytes that weren't UTF-8 stand in a Python string as lone surrogates, which can't be encoded again."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def json_of_item(item: Item) -> dict[str, Any]:
    """What a manifest line says about an item."""
    value = {key: getattr(item, key) for key in _KEYS if key != "metadata"}
    # Left out where there is none, so that manifests stay the same to the byte.
    return {**value, "metadata": dict(item.metadata)} if item.metadata else value


def item_of_json(value: Any) -> Item:
    """The item that a manifest line's JSON value stands for.

    Raises:
        DataError: the value isn't an item's.
    """
    if not _has_item_keys(value):
        got = _listed(map(str, value)) if isinstance(value, dict) else json_kind(value)
        raise DataError(f"an item has the keys {_listed(_KEYS)} (family and metadata may be left out), got {got}.")
    captions = value["captions"]
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"item {value['id']!r}: captions must be a list of texts, got {json_kind(captions)}.")
    for key in ("id", "path", "sha256", "split", "family"):
        if not isinstance(value.get(key), str) and not (key == "family" and value.get(key) is None):
            raise DataError(f"item {value['id']!r}: {key} must be a text, got {json_kind(value.get(key))}.")
    if not isinstance(value.get("metadata", {}), dict):
        raise DataError(f"item {value['id']!r}: metadata must be an object, got {json_kind(value['metadata'])}.")
    # Interned, since a large collection has few splits.
    value = {**value, "split": sys.intern(value["split"]), "captions": tuple(captions)}
    if "metadata" in value:
        value["metadata"] = _metadata(value["id"], value["metadata"])
    return Item(**value)


def _metadata(id: str, fields: Mapping[str, Any]) -> Metadata:
    try:
        return Metadata(fields)
    except DataError as error:
        raise DataError(f"item {id!r}: {error}") from None


def is_item_line(line: str) -> bool:
    """Whether a line of JSON has the keys of an item."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return _has_item_keys(value)


def _has_item_keys(value: Any) -> bool:
    return isinstance(value, dict) and set(_KEYS) - {*_OPTIONAL} <= set(value) <= set(_KEYS)
