"""The answers of a search as a table that can be read at 80 columns; numbers and ids are never cut."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


def show_hits(result: dict[str, Any], console: Console) -> None:
    """Prints the hits and, where an explanation was asked for, below them what made up each score.

    Args:
        result: of `modalloy search`.
        console: to print on.
    """
    hits = result["hits"]
    numbers = {
        "": [str(rank) for rank in range(1, len(hits) + 1)],
        "score": [_number(hit["score"]) for hit in hits],
        "standard": [f"{hit['standard_score']:+.1f}" for hit in hits],
    }
    if any(hit["rerank_score"] is not None for hit in hits):
        numbers["re-ranked"] = [_number(hit["rerank_score"]) for hit in hits]
    # As Text, since a caption may hold what Rich takes for markup.
    table = Table(title=Text(result["query"]))
    for name in numbers:
        table.add_column(name, no_wrap=True)
    table.add_column("id", overflow="fold")
    table.add_column("caption", overflow="fold")
    with_paths = not all(_id_tells_path(hit) for hit in hits)
    if with_paths:
        table.add_column("picture")
    for hit, row in zip(hits, zip(*numbers.values(), strict=True), strict=True):
        picture = [ShortPath(hit["path"] or "")] if with_paths else []
        table.add_row(*row, Text(hit["id"]), Text(hit["caption"] or ""), *picture)
    console.print(table)
    if hits[0]["part_contributions"] is not None:
        _show_contributions(hits, result["parts"], console)


@dataclass(frozen=True, slots=True)
class ShortPath:
    """A path, of which as many of the last parts are shown as fit on a line: ".../red/phone.webp"."""

    path: str

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Text]:
        parts = PurePath(self.path).parts
        shorter = [".../" + "/".join(parts[at:]) for at in range(1, len(parts))]
        shown = [self.path, *shorter, *parts[-1:]]
        fitting = (each for each in shown if Text(each).cell_len <= options.max_width)
        yield Text(next(fitting, shown[-1]), overflow="fold")

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        name = Text(PurePath(self.path).name)
        return Measurement(name.cell_len, Text(self.path).cell_len).with_maximum(options.max_width)


def _id_tells_path(hit: dict[str, Any]) -> bool:
    # Reading collections takes libraries that a search of words doesn't need.
    from modalloy.data.readers.collection import id_of_path

    # So it is in the index of a folder, and not in that of a list, whose ids are its own.
    return hit["path"] is None or f":{id_of_path(PurePath(hit['path']).as_posix())}".endswith(f":{hit['id']}")


def _show_contributions(hits: Sequence[dict[str, Any]], parts: Sequence[str], console: Console) -> None:
    lines = Table.grid(padding=(0, 2))
    for rank, hit in enumerate(hits, start=1):
        shares: list[tuple[str, dict[str, float]]] = []
        if hit["contributions"] is not None:
            shares.append(("of", hit["contributions"]))
        if len(parts) > 1:
            shares.append(("by", dict(zip(parts, hit["part_contributions"], strict=True))))
        for place, (word, added) in enumerate(shares):
            told = ", ".join(f"{_number(value)} {word} {name}" for name, value in added.items())
            lines.add_row("" if place else str(rank), Text(told))
    if lines.row_count:
        console.print("what made up each score:")
        console.print(lines)
    if hits[0]["contributions"] is None:
        console.print("the index's encoder has no parts that could be told apart in a score")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
