"""A comparison's results as tables for a terminal."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modalloy.data import SPLITS
from modalloy.errors import DataError
from modalloy.evaluation.metrics import CUTOFFS
from modalloy.evaluation.ranks import DIRECTIONS, Direction

_SHORT: dict[Direction, str] = {"image_to_text": "i2t", "text_to_image": "t2i"}
_WIDTH_OF_A_FILE = 200


def print_report(comparison: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the systems and, if there are any, their differences; by default to stdout.

    Raises:
        DataError: `comparison` lacks what the tables show.
    """
    console = wide_console(console)
    console.print(systems_table(comparison))
    if comparison.get("differences"):
        console.print(differences_table(comparison))


def wide_console(console: Console | None = None) -> Console:
    """A console, by default stdout's, that doesn't fold a table's columns."""
    console = console or Console()
    # Rich takes a file or a pipe to be 80 columns wide.
    return console if console.is_terminal else Console(file=console.file, width=_WIDTH_OF_A_FILE)


def systems_table(comparison: Mapping[str, Any]) -> Table:
    """One line a system: recall in both directions, RSum with its spread over seeds, RSum's interval.

    The best system's value is bold in each column. Where there is an oracle, its line closes the table, and a
    further column says what share of the headroom between the best input and the oracle a system takes.

    >>> recall = {"R@1": 50.0, "R@5": 75.0, "R@10": 100.0}
    >>> hada = {"image_to_text": recall, "text_to_image": recall, "rsum": 450.0, "low": 441.0, "high": 460.0}
    >>> table = systems_table({"test": {"images": 4, "captions": 8}, "systems": {"HADA": hada}})
    >>> [str(next(column.cells)) for column in table.columns]
    ['HADA', '50.0', '75.0', '100.0', '50.0', '75.0', '100.0', '450.0', '[441.0, 460.0]']

    Args:
        comparison: what `Comparison.to_dict` gives, with the split's size under its name ("test"); "spread",
            "low", "high", "headroom" and "oracle" may be missing or None.

    Raises:
        DataError: `comparison` lacks what the table shows.
    """
    with naming_what_is_missing():
        systems: Mapping[str, Mapping[str, Any]] = comparison["systems"]
        rows = {name: _numbers(system) for name, system in systems.items()}
        best = [max(column) for column in zip(*rows.values(), strict=True)]
        with_headroom = any(system.get("headroom") is not None for system in systems.values())
        table = plain_table(_title(comparison), "system")
        for direction in DIRECTIONS:
            for cutoff in CUTOFFS:
                table.add_column(f"{_SHORT[direction]}\nR@{cutoff}", justify="right")
        table.add_column("RSum")
        table.add_column(_interval_header(comparison))
        if with_headroom:
            table.add_column("headroom\ntaken", justify="right")
        for name, system in systems.items():
            cells = [Text(name), *_cells(rows[name], best, system.get("spread")), _interval(system)]
            table.add_row(*cells, *([_share(system.get("headroom"))] if with_headroom else []))
        if comparison.get("oracle") is not None:
            table.add_section()
            table.add_row(Text("oracle of the inputs"), *_cells(_numbers(comparison["oracle"]), None, None))
        return table


def differences_table(comparison: Mapping[str, Any]) -> Table:
    """One line a pair of systems: the difference of their RSum with its interval, starred if that excludes 0.

    >>> difference = {"a": "HADA", "b": "B1", "rsum": 4.25, "low": 0.5, "high": 8.0}
    >>> table = differences_table({"differences": [difference]})
    >>> [str(next(column.cells)) for column in table.columns]
    ['HADA - B1', '+4.2', '[+0.5, +8.0]', '*']

    Raises:
        DataError: `comparison` lacks what the table shows.
    """
    with naming_what_is_missing():
        table = plain_table("Differences of RSum (* the interval excludes 0)", "a - b")
        table.add_column("RSum", justify="right")
        table.add_column(_interval_header(comparison))
        table.add_column("")
        for each in comparison["differences"]:
            excludes_zero = each["low"] > 0 or each["high"] < 0
            table.add_row(
                Text(f"{each['a']} - {each['b']}", style="bold" if excludes_zero else ""),
                Text(f"{each['rsum']:+.1f}"),
                Text(f"[{each['low']:+.1f}, {each['high']:+.1f}]"),
                Text("*" if excludes_zero else ""),
            )
        return table


def plain_table(title: str, first_column: str) -> Table:
    """A table with its title and first column."""
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column(first_column)
    return table


def _title(comparison: Mapping[str, Any]) -> str:
    split = next((name for name in SPLITS if name in comparison), "test")
    size = comparison[split]
    folds = f", in folds of {size['fold_size']:,} images" if "fold_size" in size else ""
    return f"Split {split}: {size['images']:,} images, {size['captions']:,} captions{folds}"


def _interval_header(comparison: Mapping[str, Any]) -> str:
    level = comparison.get("level")
    return "interval" if level is None else f"{level:.0%} interval"


def _numbers(system: Mapping[str, Any]) -> list[float]:
    """The recalls of both directions and RSum, as shown: a tie on screen is a tie for the best."""
    recalls = [system[direction][f"R@{cutoff}"] for direction in DIRECTIONS for cutoff in CUTOFFS]
    return [round(number, 1) for number in (*recalls, system["rsum"])]


def _cells(numbers: list[float], best: list[float] | None, spread: float | None) -> list[Text]:
    cells = [Text(f"{number:.1f}") for number in numbers]
    if spread is not None:
        cells[-1].append(f" ± {spread:.1f}")
    for cell, number, largest in zip(cells, numbers, best or [float("inf")] * len(numbers), strict=True):
        if number == largest:
            cell.stylize("bold")
    return cells


def _interval(system: Mapping[str, Any]) -> Text:
    low, high = system.get("low"), system.get("high")
    return Text("" if low is None or high is None else f"[{low:.1f}, {high:.1f}]")


def _share(value: float | None) -> Text:
    return Text("" if value is None else f"{value:.0%}")


@contextmanager
def naming_what_is_missing() -> Iterator[None]:
    """Makes what a damaged comparison leads to an error that says so.

    Raises:
        DataError: it lacks what the table shows.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"The comparison can't be shown ({type(error).__name__}: {error}); "
            "it is damaged or another version's: evaluate again."
        ) from error
