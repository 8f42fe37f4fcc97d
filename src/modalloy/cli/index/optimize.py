"""modalloy index optimize"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from modalloy.cli.verb import Verb


class Optimize(Verb):
    """Makes an index fast again."""

    name = "optimize"
    summary = "Make searches fast again after many changes, and drop what no reader needs any more."
    example = "modalloy index optimize"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        parser.add_argument("--index", type=str, default="index", help="the index: a folder or a URI")

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.index.writing import index_to_change

        # What a build has begun beside the present generation mustn't be taken for what is left of one.
        with index_to_change(options.index) as index:
            index.optimize()
        snapshot = index.snapshot()
        return {"index": index.location, "version": snapshot.version, "rows": snapshot.count()}

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        console.print(f"{result['index']}: {result['rows']:,} rows are compact and indexed.")
