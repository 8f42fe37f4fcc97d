"""What a verb of the command line is."""

import os
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

if TYPE_CHECKING:
    from modalloy.workflow.features import Collection


# What the files of many a collection are called, so that only their folders' names tell them apart; "" is {00..12}.tar.
_COMMON_NAMES = ("manifest", "metadata", "")


class Verb(ABC):
    """One subcommand: its options, what it does, and how it shows its result to people."""

    name: str
    """The word on the command line."""
    summary: str
    """One sentence for `--help`."""
    example: str
    """A command that works, shown by `--help`."""

    @abstractmethod
    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declares the verb's own arguments; `--json` and `--threads` come by themselves."""

    @abstractmethod
    def execute(self, options: Namespace) -> dict[str, Any]:
        """Does the work and returns a result that fits into JSON."""

    @abstractmethod
    def show(self, result: dict[str, Any], console: Console) -> None:
        """Prints the result for people."""

    def exit_code(self, result: dict[str, Any]) -> int:
        """The process's exit code, where the work could be done."""
        return 0


class VerbGroup:
    """Several verbs behind one word, such as `modalloy index build` and `modalloy index add`."""

    name: str
    """The word on the command line."""
    summary: str
    """One sentence for `--help`."""
    verbs: tuple[Verb, ...]
    """What may follow it."""


def add_collection(parser: ArgumentParser) -> None:
    """The arguments by which most verbs find a collection and its features."""
    parser.add_argument(
        "--collection",
        type=str,
        required=True,
        help="a folder of pictures or tars, a manifest, a table, Karpathy's JSON, a caption list, "
        'or "demo" for the set that comes with modalloy (docs/collections.md)',
    )
    parser.add_argument("--images", type=str | None, default=None, help="folder of a list's pictures, if elsewhere")
    parser.add_argument(
        "--features",
        type=str | None,
        default=None,
        help="folder of extracted features, made or gone on with; default: features/NAME, after the collection "
        "(of a manifest, after its folder)",
    )


def add_extraction(parser: ArgumentParser) -> None:
    """The arguments of extraction, for verbs that may have to extract first."""
    from modalloy.workflow.features import ExtractConfig

    parser.add_class_arguments(ExtractConfig, "extraction")


def open_for(options: Namespace) -> "Collection":
    """The collection that the arguments of `add_collection` and `add_extraction` name."""
    from modalloy.workflow.collections import open_collection
    from modalloy.workflow.features import Collection

    return Collection(
        open_collection(options.collection, options.images), _features_folder(options), options.extraction
    )


def _features_folder(options: Namespace) -> Path:
    if options.features is not None:
        return Path(options.features)
    # One folder a collection: features of another one in the same folder would be replaced.
    collection = Path(os.path.abspath(options.collection))
    name = re.sub(r"\{[^{}]*\}", "", collection.stem).strip("-_.")
    return Path("features") / (collection.parent.name if name in _COMMON_NAMES else name)
