"""Recall beside latency for each depth of hierarchical inference, as a table for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from modalloy.evaluation.metrics import CUTOFFS
from modalloy.report.numbers import MISSING
from modalloy.report.results import DIRECTION_NAMES
from modalloy.report.table import naming_what_is_missing, plain_table, wide_console

_COLUMNS = (*(f"R@{cutoff}" for cutoff in CUTOFFS), "rsum")


def print_depths(choice: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints `depths_table`; by default to stdout.

    Raises:
        DataError: `choice` lacks what the table shows.
    """
    wide_console(console).print(depths_table(choice))


def depths_table(choice: Mapping[str, Any]) -> Table:
    """One line a setting: candidates of each stage, recall after the last, and milliseconds a query.

    The first line is of the vectors alone; the chosen setting is bold, and starred.

    Args:
        choice: what `DepthChoice.to_dict` gives.

    Raises:
        DataError: `choice` lacks what the table shows.

    >>> recall = {"R@1": 50.0, "R@5": 75.0, "R@10": 100.0, "rsum": 225.0}
    >>> depth = {
    ...     "config": {"first": 20, "second": None},
    ...     "stages": {"global": recall, "focal": recall},
    ...     "milliseconds": {"global": 0.5, "focal": 2.0},
    ...     "latency": 2.5,
    ... }
    >>> found = {"direction": "text_to_image", "loss": 0.2, "measures": ["R@1"], "chosen": 0, "deepest": 0}
    >>> table = depths_table(found | {"depths": [depth]})
    >>> [str(list(column.cells)[1]) for column in table.columns]
    ['20', '–', '50.0', '75.0', '100.0', '225.0', '2.50', '*']
    """
    with naming_what_is_missing():
        depths = choice["depths"]
        deepest = depths[choice["deepest"]]
        within = f"{' and '.join(choice['measures'])} within {choice['loss']:g} of the deepest"
        where = f" on {choice['split']}" if "split" in choice else ""
        table = plain_table(f"{DIRECTION_NAMES[choice['direction']]}{where} (* {within})", "focal")
        for heading in ("cross-\nlayer", *_COLUMNS[:-1], "RSum", "ms a\nquery", ""):
            table.add_column(heading, justify="right")
        vectors = deepest["stages"]["global"], deepest["milliseconds"]["global"]
        table.add_row(*_cells(None, None, *vectors), Text())
        for place, depth in enumerate(depths):
            counts = depth["config"]["first"], depth["config"]["second"]
            last = list(depth["stages"].values())[-1]
            chosen = place == choice["chosen"]
            cells = [*_cells(*counts, last, depth["latency"]), Text("*" if chosen else "")]
            table.add_row(*cells, style="bold" if chosen else "")
        return table


def _cells(first: int | None, second: int | None, recall: Mapping[str, float], latency: float) -> list[Text]:
    counts = [MISSING if count is None else str(count) for count in (first, second)]
    return [Text(text) for text in (*counts, *(f"{recall[column]:.1f}" for column in _COLUMNS), f"{latency:.2f}")]
