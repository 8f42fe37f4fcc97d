"""Conditions as Qdrant's filters, which mean the same: a row without the field never satisfies one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from modalloy.errors import ConfigError
from modalloy.index.condition import Condition, check_condition, column_of, field_kind
from modalloy.index.schema import MetaKind

if TYPE_CHECKING:
    from qdrant_client import models

LOWER = "_lower"
"""Where a row's texts stand in small letters too: Qdrant finds parts of texts only as they are written."""


def conditions_of(conditions: Sequence[Condition], metadata: Mapping[str, MetaKind]) -> "list[models.Condition]":
    """What a point must satisfy.

    >>> conditions_of([Condition("camera", "=", "M6")], {"camera": "text"})[0].match.value
    'M6'

    Raises:
        ConfigError: a condition doesn't fit the index, or orders texts, which Qdrant can't.
    """
    return [_one(check_condition(each, metadata), field_kind(each.field, metadata)) for each in conditions]


def one_of(column: str, values: Sequence[str] | Sequence[int]) -> "models.Condition":
    """That a column has one of some values."""
    from qdrant_client import models

    # What an empty list of values means differs between versions of the server; no point has none of its ids.
    if not values:
        return models.HasIdCondition(has_id=[])
    return models.FieldCondition(key=column, match=models.MatchAny(any=list(values)))  # type: ignore[arg-type]


def _one(condition: Condition, kind: MetaKind) -> "models.Condition":
    column = column_of(condition.field)
    if kind == "number":
        return _number(column, condition.comparison, [float(value) for value in condition.values])
    if kind == "truth":
        return _equal(column, condition.value is (condition.comparison == "="))
    return _text(column, condition)


def _text(column: str, condition: Condition) -> "models.Condition":
    from qdrant_client import models

    texts = [str(value) for value in condition.values]
    if condition.comparison == "contains":
        return models.FieldCondition(key=f"{LOWER}.{column}", match=models.MatchSubstring(substring=texts[0].lower()))
    if condition.comparison == "in":
        return one_of(column, texts)
    if condition.comparison == "=":
        return _equal(column, texts[0])
    if condition.comparison == "!=":
        absent = models.IsEmptyCondition(is_empty=models.PayloadField(key=column))
        return models.Filter(must_not=[_equal(column, texts[0]), absent])
    raise ConfigError(
        f"{condition.field} {condition.comparison}: an index in a Qdrant cluster orders numbers only, not texts; "
        "compare by =, !=, in or contains, or keep what is to be ordered as a number."
    )


def _number(column: str, comparison: str, numbers: Sequence[float]) -> "models.Condition":
    from qdrant_client import models

    def within(**bounds: float) -> models.FieldCondition:
        return models.FieldCondition(key=column, range=models.Range(**bounds))

    first = numbers[0] if numbers else 0.0
    match comparison:
        # Qdrant matches integers and texts; equal numbers are a range.
        case "=":
            return within(gte=first, lte=first)
        case "!=":
            return models.Filter(should=[within(lt=first), within(gt=first)])
        case "in":
            return models.Filter(should=[within(gte=number, lte=number) for number in numbers] or [one_of(column, [])])
        case _:
            return within(**{{"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}[comparison]: first})


def _equal(column: str, value: str | bool) -> "models.Condition":
    from qdrant_client import models

    return models.FieldCondition(key=column, match=models.MatchValue(value=value))
