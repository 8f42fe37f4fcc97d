"""modalloy index build"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from modalloy.cli.index.options import add_source, add_updating, keeper_of, show_updated
from modalloy.cli.verb import Verb


class Build(Verb):
    """Makes an index of a collection, or brings it up to date."""

    name = "build"
    summary = "Make an index of a folder of pictures, or bring it up to date; goes on where it was interrupted."
    example = "modalloy index build pictures --encoder alloy:runs/demo"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        add_source(parser)
        parser.add_argument(
            "--encoder",
            type=str | None,
            default=None,
            help="spec of a dual encoder; default: the index's own, else the one alloy in runs/. With another one than "
            "the index's all is embedded anew, beside the present index, which answers until then",
        )
        add_updating(parser)

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        keeper = keeper_of(options)
        updated = keeper.build(options.source, options.images, options.encoder)
        if options.watch:
            updated = keeper.watch(updated)
        return updated.to_dict()

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        show_updated(result, console)
