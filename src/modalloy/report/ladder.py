"""The ladder of `modalloy fuse --method auto` as a table for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text


def ladder_table(choice: Mapping[str, Any]) -> Table:
    """One line a rung: its RSum on both halves, and its difference to the simple system; the chosen one is bold.

    Args:
        choice: what `Choice.to_dict` gives.

    >>> tuned = {"name": "tuned", "choosing": 254.0, "judging": 251.5, "difference": None}
    >>> table = ladder_table({"chosen": "tuned", "simple": "tuned", "rungs": [tuned]})
    >>> [str(next(column.cells)) for column in table.columns]
    ['tuned', '254.0', '251.5', '']
    """
    table = Table(title=Text("RSum on the validation items"), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("system")
    table.add_column("choosing", justify="right")
    table.add_column("judging", justify="right")
    table.add_column(Text(f"minus {choice['simple']}"))
    for rung in choice["rungs"]:
        judging, difference = rung["judging"], rung["difference"]
        apart = ""
        if difference is not None and rung["name"] != choice["simple"]:
            apart = f"{difference['value']:+.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}]"
        table.add_row(
            Text(rung["name"], style="bold" if rung["name"] == choice["chosen"] else ""),
            f"{rung['choosing']:.1f}",
            "" if judging is None else f"{judging:.1f}",
            Text(apart),
        )
    return table
