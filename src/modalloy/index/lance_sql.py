"""Conditions as LanceDB's SQL."""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from modalloy.index.condition import Condition, column_of
from modalloy.index.schema import COLUMNS


def sql_of(conditions: Sequence[Condition]) -> str | None:
    """All conditions joined by AND; None where there are none.

    >>> sql_of([Condition("year", ">=", 2020.0), Condition("title", "contains", "O'Hara")])
    "(`meta_year` >= 2020.0) AND (contains(lower(`meta_title`), 'o''hara'))"
    """
    return " AND ".join(f"({_one(condition)})" for condition in conditions) or None


def sql_of_ids(ids: Iterable[str], column: str = "id") -> str:
    """Which rows have one of some ids.

    >>> sql_of_ids(["a", "it's"])
    "`id` IN ('a', 'it''s')"
    """
    listed = ", ".join(map(_literal, ids))
    return f"`{column}` IN ({listed})" if listed else "FALSE"


def _one(condition: Condition) -> str:
    name = column_of(condition.field)
    column = f"`{name}`"
    if name in COLUMNS and pa.types.is_integer(COLUMNS[name]):
        # LanceDB refuses to compare a whole number with one like 2.5, and with 2.0 as well.
        column = f"CAST({column} AS DOUBLE)"
    if condition.comparison == "contains":
        return f"contains(lower({column}), {_literal(str(condition.value).lower())})"
    if condition.comparison == "in":
        return f"{column} IN ({', '.join(map(_literal, condition.values))})" if condition.values else "FALSE"
    return f"{column} {condition.comparison} {_literal(condition.values[0])}"


def _literal(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)
