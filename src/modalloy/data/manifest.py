"""What a collection holds: the `Manifest` lists its items.

A saved manifest is JSON lines, one item a line. Only where it isn't kept in the images' root folder, a first
line `{"root": FOLDER}` says where that folder is.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, overload

import torch
from jaxtyping import Int
from torch import Tensor

from modalloy.data.images import sha256_of_image
from modalloy.data.item import SPLITS, Item, item_of_json, json_of_item
from modalloy.errors import DataError, ImageError
from modalloy.files import atomic_path
from modalloy.progress import BAR_FROM, track


@dataclass(frozen=True)
class Manifest(Sequence[Item]):
    """The items of a collection, in a fixed order, and the folder that their paths start from.

    >>> cat = Item("cat", "cat.jpg", "0" * 64, "train", ("A cat.", "A black cat."))
    >>> dog = Item("dog", "dog.jpg", "1" * 64, "test", ("A dog.",))
    >>> manifest = Manifest(Path("/pictures"), (cat, dog))
    >>> manifest.caption_ids
    ['cat#0', 'cat#1', 'dog#0']
    >>> manifest.caption_image
    tensor([0, 0, 1])
    >>> manifest.split("test").image_ids
    ['dog']

    Raises:
        DataError: two items have the same id.
    """

    root: Path
    """The folder that item paths start from."""
    items: tuple[Item, ...] = field(repr=False)
    """The items, in the order that features and ranks keep."""

    def __post_init__(self) -> None:
        seen: dict[str, Item] = {}
        for item in self.items:
            if (other := seen.setdefault(item.id, item)) is not item:
                raise DataError(
                    f"two items have the id {item.id!r} ({other.path} and {item.path}); ids must be unique."
                )

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> "Manifest": ...
    def __getitem__(self, index: int | slice) -> "Item | Manifest":
        """The item at `index`, or a manifest of the items in a slice."""
        if isinstance(index, slice):
            return Manifest(self.root, self.items[index])
        return self.items[index]

    @classmethod
    def load(cls, path: str | Path, root: str | Path | None = None) -> Self:
        """Reads a saved manifest.

        Args:
            path: the JSON lines file.
            root: where the images are, if they have moved; else where the file says, else the file's folder.

        Raises:
            DataError: the file is missing, holds no item, or a line isn't a valid item (named FILE:LINE).
        """
        path = Path(path)
        written_root, items = _read_lines(path)
        if not items:
            raise DataError(f"{path} holds no items; it may be damaged: build the manifest again.")
        try:
            return cls(Path(root or written_root or path.parent), tuple(items))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Writes the manifest to `path`, atomically.

        Raises:
            DataError: there is no item to write.
        """
        if not self.items:
            raise DataError(f"{path}: a manifest without items can't be saved; check the splits chosen.")
        path = Path(path)
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            if self.root.resolve() != path.parent.resolve():
                file.write(_json_line({"root": self.root.resolve().as_posix()}))
            file.writelines(_json_line(json_of_item(item)) for item in self.items)

    def split(self, *names: str) -> "Manifest":
        """The items of the named splits, in the same order.

        Raises:
            DataError: a name isn't one of `SPLITS`.
        """
        for name in names:
            if name not in SPLITS:
                raise DataError(f"there is no split {name!r}; choose among {', '.join(SPLITS)}.")
        return Manifest(self.root, tuple(item for item in self.items if item.split in names))

    @cached_property
    def image_ids(self) -> list[str]:
        """The items' ids, in order."""
        return [item.id for item in self.items]

    @cached_property
    def captions(self) -> list[str]:
        """All captions, item after item."""
        return [caption for item in self.items for caption in item.captions]

    @cached_property
    def caption_ids(self) -> list[str]:
        """The ids of `captions`: "<id>#0", "<id>#1", ..."""
        return [caption_id for item in self.items for caption_id in item.caption_ids]

    @cached_property
    def caption_image(self) -> Int[Tensor, "captions"]:
        """For each caption the row of its image."""
        counts = torch.tensor([len(item.captions) for item in self.items], dtype=torch.long)
        return torch.repeat_interleave(torch.arange(len(self.items)), counts)

    @cached_property
    def families(self) -> Int[Tensor, "images"]:
        """For each image the number of its family; an image without a family has a number of its own."""
        numbers: dict[str | tuple[str], int] = {}
        # The tuple keeps an id apart from a family of the same name.
        keys = ((item.id,) if item.family is None else item.family for item in self.items)
        return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], dtype=torch.long)

    def counts(self) -> dict[str, dict[str, int]]:
        """Images and captions in each split that there is: `{"train": {"images": n, "captions": m}, ...}`."""
        counts = {name: {"images": 0, "captions": 0} for name in SPLITS}
        for item in self.items:
            counts[item.split]["images"] += 1
            counts[item.split]["captions"] += len(item.captions)
        return {name: count for name, count in counts.items() if count["images"]}

    def absolute(self, item: Item) -> Path:
        """Where an item's image file is; TAR/MEMBER for one in a tar."""
        return self.root / item.path

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ids, the images' checksums and the captions, in order."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(json.dumps([item.id, item.sha256, item.captions], ensure_ascii=False).encode())
        return digest.hexdigest()

    def file_problem(self, item: Item) -> str | None:
        """What is wrong with an item's image file (missing, unreadable, changed), or None."""
        path = self.absolute(item)
        try:
            changed = sha256_of_image(path) != item.sha256
        except FileNotFoundError:
            return f"{path} is missing; put it back, or build the manifest again"
        except OSError as error:
            return f"{path} can't be read ({error.strerror})"
        except ImageError as error:
            return str(error)
        if changed:
            return f"{path} has changed since the manifest was built; build it again"
        return None

    def check_files(self) -> list[str]:
        """One line for each item whose image file is missing, unreadable or changed."""
        checked = track(self.items, "checking files", total=len(self.items), shown_from=BAR_FROM)
        problems = ((item, self.file_problem(item)) for item in checked)
        return [f"{item.id}: {problem}" for item, problem in problems if problem is not None]


def _json_line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _read_lines(path: Path) -> tuple[str | None, list[Item]]:
    """The root folder that the first line may name, and the items."""
    root, items = None, []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    value = json.loads(line.decode())
                    if number == 1 and isinstance(value, dict) and set(value) == {"root"}:
                        root = str(value["root"])
                    else:
                        items.append(item_of_json(value))
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}:{number}: not JSON in UTF-8 ({error}).") from None
                except DataError as error:
                    raise DataError(f"{path}:{number}: {error}") from None
    except OSError as error:
        reason = f"can't be read ({error.strerror}); check the path"
        raise DataError(f"the manifest {path} {reason}, or build it first.") from None
    return root, items
