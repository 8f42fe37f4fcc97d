"""modalloy index list"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modalloy.cli.verb import Verb
from modalloy.counted import counted
from modalloy.errors import ConfigError


class List(Verb):
    """Shows what an index holds."""

    name = "list"
    summary = "Show what an index holds: its encoder, sources, fields, and pictures."
    example = 'modalloy index list --where "year >= 2020"'

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        parser.add_argument("--index", type=str, default="index", help="the index: a folder or a URI")
        parser.add_argument(
            "--where",
            type=str,
            action="append",
            default=[],
            help="only pictures for which this holds, such as 'year >= 2020'; several must all hold",
        )
        parser.add_argument("--limit", type=int, default=20, help="pictures to show")
        parser.add_argument("--offset", type=int, default=0, help="pictures to pass over")

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.index import open_index, parse_condition
        from modalloy.index.summary import count_pictures, list_pictures, summary_of

        if options.limit < 0 or options.offset < 0:
            raise ConfigError("--limit and --offset can't be below 0.")
        index = open_index(options.index)
        snapshot = index.snapshot()
        where = [parse_condition(text, snapshot.metadata) for text in options.where]
        rows = list_pictures(snapshot, where, options.limit, options.offset) if options.limit else []
        return {**summary_of(snapshot, index.location), "matching": count_pictures(snapshot, where), "rows": rows}

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        from modalloy.index.condition import fields_of

        fields = fields_of(result["fields"]).items()
        size = "" if result["bytes"] is None else f", {result['bytes'] / 2**20:,.1f} MiB"
        for line in (
            f"{result['index']}: {counted(result['pictures'], 'picture')}, "
            f"{counted(result['captions'], 'caption')}{size}",
            f"made by {result['encoder']}, generation {result['generation']}",
            *(
                f"source {source['name']!r}: {counted(source['pictures'], 'picture')} "
                f"of {source['collection'] or 'unknown'}"
                for source in result["sources"]
            ),
            f"fields for --where: {', '.join(f'{name} ({kind})' for name, kind in fields)}",
        ):
            console.print(Text(line), soft_wrap=True)
        if result["rows"]:
            table = Table("id", "split", "size", "captions", "metadata")
            for row in result["rows"]:
                known = ", ".join(f"{name}={value}" for name, value in row["metadata"].items())
                size = f"{row['width'] or '?'} x {row['height'] or '?'}"
                cells = (row["id"], row["split"] or "", size, " / ".join(row["captions"] or ()), known)
                table.add_row(*map(Text, cells))
            console.print(table)
            if (shown := len(result["rows"])) < result["matching"]:
                console.print(f"{shown:,} of {result['matching']:,} shown; --limit N and --offset N show others")
