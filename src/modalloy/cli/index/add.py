"""modalloy index add"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from modalloy.cli.index.options import add_source, add_updating, keeper_of, show_updated
from modalloy.cli.verb import Verb


class Add(Verb):
    """Adds a further collection to an index."""

    name = "add"
    summary = "Add a further folder of pictures, or another collection, to an index."
    example = "modalloy index add holidays --name holidays"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        add_source(parser)
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="what the ids of its pictures begin with, before a ':'; default: the folder's or file's name",
        )
        add_updating(parser, watch=False)

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        return keeper_of(options).add(options.source, options.images, options.name).to_dict()

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        show_updated(result, console)
