"""What an answer must satisfy besides being similar: conditions on an index's columns and metadata.

They are values, not text of a query language: nothing that a request says is ever run by a database.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from modalloy.errors import ConfigError
from modalloy.index.schema import FILTERED, META, MetaKind

Comparison = Literal["=", "!=", "<", "<=", ">", ">=", "in", "contains"]
Value = str | float | bool | tuple[str | float | bool, ...]

_WRITTEN = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(!=|<=|>=|=|<|>|\bin\b|\bcontains\b)\s*(.*?)\s*", re.DOTALL)
_NUMBERS = ("width", "height", "bytes")


@dataclass(frozen=True, slots=True)
class Condition:
    """One field compared with a value; several conditions must all hold. A row without the field never satisfies one.

    >>> Condition("year", ">=", 2020.0)
    Condition(field='year', comparison='>=', value=2020.0)

    Raises:
        ConfigError: the comparison is unknown, or doesn't go with the value.
    """

    field: str
    """A column of `FILTERED`, or a field of the metadata."""
    comparison: Comparison
    """"in" takes several values, and "contains" a part of a text, in any case of letters."""
    value: Value
    """What to compare with."""

    def __post_init__(self) -> None:
        if self.comparison not in get_args(Comparison):
            known = ", ".join(get_args(Comparison))
            raise ConfigError(f"a condition compares by {known}, got {self.comparison!r}.")
        if (self.comparison == "in") != isinstance(self.value, tuple):
            raise ConfigError(f"{self.field} {self.comparison}: 'in' takes several values, all others one.")
        for value in self.values:
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{self.field} {self.comparison}: a number must be finite, got {value}.")
        if self.comparison == "contains" and not isinstance(self.value, str):
            raise ConfigError(f"{self.field} contains: a part of a text is a text, got {self.value!r}.")

    @property
    def values(self) -> tuple[str | float | bool, ...]:
        """The value, or the several ones."""
        return self.value if isinstance(self.value, tuple) else (self.value,)


def parse_condition(text: str, metadata: Mapping[str, MetaKind]) -> Condition:
    """The condition that a text such as "year >= 2020", "tag in cat, dog" or "title contains sea" stands for.

    Args:
        text: FIELD COMPARISON VALUE.
        metadata: the kinds of the index's fields; the field's kind decides how the value is read.

    Raises:
        ConfigError: it isn't a condition, there is no such field, or the value isn't of the field's kind.

    >>> parse_condition("year>=2020", {"year": "number"}).value
    2020.0
    """
    found = _WRITTEN.fullmatch(text)
    if found is None or not found[3]:
        raise ConfigError(f"a condition is FIELD COMPARISON VALUE, such as 'year >= 2020', got {text!r}.")
    field, comparison, value = found[1], found[2], found[3]
    kind = field_kind(field, metadata)
    parts = [part.strip() for part in value.split(",")] if comparison == "in" else [value]
    values = tuple(_value(field, kind, part) for part in parts)
    return check_condition(
        Condition(field, comparison, values if comparison == "in" else values[0]),  # type: ignore[arg-type]
        metadata,
    )


def check_condition(condition: Condition, metadata: Mapping[str, MetaKind]) -> Condition:
    """Gives the condition back if the index has the field and its values are of the field's kind.

    Raises:
        ConfigError: otherwise.
    """
    kind = field_kind(condition.field, metadata)
    expected: dict[MetaKind, tuple[type, ...]] = {"text": (str,), "number": (int, float), "truth": (bool,)}
    for value in condition.values:
        # A truth value is an int to Python.
        if not isinstance(value, expected[kind]) or (kind == "number" and isinstance(value, bool)):
            raise ConfigError(f"{condition.field} is a {kind}, so it can't be compared with {value!r}.")
    if condition.comparison == "contains" and kind != "text":
        raise ConfigError(f"{condition.field} is a {kind}; only a text can contain one.")
    if kind == "truth" and condition.comparison not in ("=", "!="):
        raise ConfigError(f"{condition.field} is true or false; compare it by = or !=, not {condition.comparison}.")
    return condition


def fields_of(metadata: Mapping[str, MetaKind]) -> dict[str, MetaKind]:
    """All that a condition can be about, with its kind: columns, and fields of the metadata.

    >>> list(fields_of({"camera": "text"}).items())[-2:]
    [('bytes', 'number'), ('camera', 'text')]
    """
    return {field: field_kind(field, metadata) for field in (*FILTERED, *metadata)}


def field_kind(field: str, metadata: Mapping[str, MetaKind]) -> MetaKind:
    """The kind of a column or of a metadata field.

    Raises:
        ConfigError: there is no such field.
    """
    # A column wins over a field of the same name, which then isn't reached; see `column_of`.
    if field in FILTERED:
        return "number" if field in _NUMBERS else "text"
    if field not in metadata:
        raise ConfigError(f"the index has no field {field!r}, only {', '.join([*FILTERED, *metadata])}.")
    return metadata[field]


def column_of(field: str) -> str:
    """The column of a field.

    >>> column_of("split"), column_of("camera")
    ('split', 'meta_camera')
    """
    return field if field in FILTERED else META + field


def _value(field: str, kind: MetaKind, text: str) -> str | float | bool:
    if kind == "text":
        return text
    if kind == "truth":
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{field} is true or false, got {text!r}.")
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{field} is a number, got {text!r}.") from None
