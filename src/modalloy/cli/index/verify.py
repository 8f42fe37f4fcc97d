"""modalloy index verify"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modalloy.cli.verb import Verb
from modalloy.counted import counted


class Verify(Verb):
    """Says what is wrong with an index."""

    name = "verify"
    summary = "Look an index through, row by row, and search for a sample of what it holds."
    example = "modalloy index verify --files"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        parser.add_argument("--index", type=str, default="index", help="the index: a folder or a URI")
        parser.add_argument("--files", action="store_true", help="also read, compare and decode each picture's file")
        parser.add_argument(
            "--repair", action="store_true", help="remove rows that belong to nothing, and all but one of an id"
        )
        parser.add_argument("--seed", type=int, default=0, help="draws the sample")

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from contextlib import nullcontext

        from modalloy.index import open_index
        from modalloy.index.verify import verify_index
        from modalloy.index.writing import index_to_change

        with index_to_change(options.index) if options.repair else nullcontext(open_index(options.index)) as index:
            result = verify_index(index, files=options.files, repair=options.repair, seed=options.seed)
        return {"index": index.location, **result.to_dict()}

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        what = f"{counted(result['pictures'], 'picture')} and {counted(result['captions'], 'caption')}"
        console.print(Text(f"{result['index']}: {what} checked"), soft_wrap=True)
        if result["unembedded"]:
            console.print(
                f"{result['unembedded']:,} more captions have no vector: the encoder couldn't take them, or they "
                "were lost; modalloy index update --rehash embeds them again"
            )
        if result["recall"] is not None:
            console.print(f"recall@10 of the approximate search: {result['recall']:.3f} ({result['sampled']} searches)")
        if result["repaired"]:
            console.print(f"{result['repaired']:,} rows removed; verify again to see what is left")
        if not result["findings"]:
            console.print("nothing is wrong")
            return
        table = Table("problem", "rows", "the first", "how to mend it")
        for finding in result["findings"]:
            first = ", ".join(finding["examples"])
            table.add_row(finding["kind"], f"{finding['count']:,}", Text(first), finding["mend"])
        console.print(table)

    def exit_code(self, result: dict[str, Any]) -> int:
        """1 where something is, or was, wrong."""
        return int(bool(result["findings"]))
