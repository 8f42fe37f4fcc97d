"""modalloy index remove"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.text import Text

from modalloy.cli.index.options import add_index
from modalloy.cli.verb import Verb
from modalloy.counted import counted
from modalloy.errors import ConfigError


class Remove(Verb):
    """Takes pictures out of an index."""

    name = "remove"
    summary = "Remove pictures, by ids or by conditions, or a whole source from an index; files are never touched."
    example = "modalloy index remove --source holidays"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        parser.add_argument(
            "ids",
            nargs="*",
            type=str,
            default=[],
            help="ids of pictures; they come back with the next update, unless their files leave the source",
        )
        parser.add_argument(
            "--where",
            type=str,
            action="append",
            default=[],
            help="remove all pictures for which this holds, such as 'year < 2000'; several must all hold",
        )
        parser.add_argument(
            "--source", type=str | None, default=None, help="remove a source; '' is the one that the index was built of"
        )
        add_index(parser)

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.index import parse_condition
        from modalloy.index.removal import remove_pictures, remove_source, remove_where
        from modalloy.index.writing import index_to_change

        if sum((bool(options.ids), bool(options.where), options.source is not None)) != 1:
            raise ConfigError("say what to remove: ids of pictures, or --where, or --source; exactly one of them.")
        with index_to_change(options.index) as index:
            if options.source is not None:
                removed = remove_source(index, options.source)
            elif options.where:
                fields = index.snapshot().metadata
                removed = remove_where(index, [parse_condition(text, fields) for text in options.where])
            else:
                removed = remove_pictures(index, options.ids)
        return {"index": index.location, "removed": removed, "version": index.snapshot().version}

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        console.print(Text(f"{result['index']}: {counted(result['removed'], 'picture')} removed"), soft_wrap=True)
