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

    A query takes longer on its own than in a batch, which reads a candidate's tokens once for all that have it.

    The first line is of the vectors alone; the chosen setting is bold, and starred.

    Args:
        choice: what `DepthChoice.to_dict` gives.

    Raises:
        DataError: `choice` lacks what the table shows.

    >>> recall = {"R@1": 50.0, "R@5": 75.0, "R@10": 100.0, "rsum": 225.0}
    >>> depth = {
    ...     "config": {"focal_candidates": 20, "cross_candidates": None},
    ...     "stages": {"global": recall, "focal": recall},
    ...     "milliseconds": {"global": 0.5, "focal": 2.0},
    ...     "latency": 2.5,
    ...     "batched": {"global": 0.1, "focal": 0.4},
    ... }
    >>> found = {"direction": "text_to_image", "loss": 0.2, "recall": None, "reached": True, "measures": ["R@1"]}
    >>> table = depths_table(found | {"chosen": 0, "deepest": 0, "depths": [depth]})
    >>> [str(list(column.cells)[1]) for column in table.columns]
    ['20', '–', '50.0', '75.0', '100.0', '225.0', '2.50', '0.50', '*']
    """
    with naming_what_is_missing():
        depths = choice["depths"]
        deepest = depths[choice["deepest"]]
        table = plain_table(_title(choice), "focal")
        for heading in ("cross-\nlayer", *_COLUMNS[:-1], "RSum", "ms a\nquery", "ms in\nbatches", ""):
            table.add_column(heading, justify="right")
        vectors = deepest["stages"]["global"], deepest["milliseconds"]["global"], deepest["batched"]["global"]
        table.add_row(*_cells(None, None, *vectors), Text())
        for place, depth in enumerate(depths):
            counts = depth["config"]["focal_candidates"], depth["config"]["cross_candidates"]
            last = list(depth["stages"].values())[-1]
            chosen = place == choice["chosen"]
            cells = _cells(*counts, last, depth["latency"], sum(depth["batched"].values()))
            table.add_row(*cells, Text("*" if chosen else ""), style="bold" if chosen else "")
        return table


def times_lines(results: Mapping[str, Any]) -> list[str]:
    """A line a direction: milliseconds of each stage of a query on its own, and in batches.

    Args:
        results: what `workflow.stages.evaluate_stages` gives; without stages there is no line.

    Raises:
        DataError: `results` lacks what the lines show.

    >>> times_lines({"milliseconds": {"text_to_image": {"focal": 2.0}}, "batched": {"text_to_image": {"focal": 0.5}}})
    ['milliseconds a query (in batches), text to image: focal 2.00 (0.50)']
    """
    with naming_what_is_missing():
        return [
            f"milliseconds a query (in batches), {direction.replace('_', ' ')}: "
            + "; ".join(
                f"{name} {time:.2f} ({results['batched'][direction][name]:.2f})" for name, time in stages.items()
            )
            for direction, stages in results.get("milliseconds", {}).items()
        ]


def _title(choice: Mapping[str, Any]) -> str:
    system = f"{choice['system']}, " if choice.get("system") else ""
    where = f" on {choice['split']}" if "split" in choice else ""
    measures = " and ".join(choice["measures"])
    rule = f"* {measures} within {choice['loss']:g} of the deepest" if choice["recall"] is None else ""
    if choice["recall"] is not None:
        wanted = f"{measures} of {choice['recall']:g}"
        rule = f"* at least {wanted}" if choice["reached"] else f"no depth reaches {wanted}; * the deepest"
    return f"{system}{DIRECTION_NAMES[choice['direction']]}{where} ({rule})"


def _cells(focal: int | None, cross: int | None, recall: Mapping[str, float], *times: float) -> list[Text]:
    counts = [MISSING if count is None else str(count) for count in (focal, cross)]
    recalls = [f"{recall[column]:.1f}" for column in _COLUMNS]
    return [Text(text) for text in (*counts, *recalls, *(f"{time:.2f}" for time in times))]
