"""modalloy index update"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from modalloy.cli.index.options import add_updating, exit_code_of, keeper_of, show_updated
from modalloy.cli.verb import Verb


class Update(Verb):
    """Brings an index to what its sources hold now."""

    name = "update"
    summary = "Look through all sources of an index again: only what is new or changed is embedded."
    example = "modalloy index update --watch"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        add_updating(parser)

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        keeper = keeper_of(options)
        updated = keeper.update()
        if options.watch:
            updated = keeper.watch(updated)
        return updated.to_dict()

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        show_updated(result, console)

    def exit_code(self, result: dict[str, Any]) -> int:
        """2 where a source couldn't be looked through."""
        return exit_code_of(result)
