"""What users know of a picture besides its captions: named texts, numbers and truth values, to filter answers by."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from modalloy.data.json_kind import json_kind
from modalloy.errors import DataError

MetaKind = Literal["text", "number", "truth"]
"""What a field of metadata can be: a text, a number, or true or false."""

MetaValue = str | float | bool
"""A field's value."""

MAX_META_TEXT = 4096
"""A longer text is no metadata."""

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EXACT = 2**53
"""Whole numbers up to here are exact as float64."""


class Metadata(Mapping[str, MetaValue]):
    """One picture's fields, checked; equal to a dict of the same fields, but it can't be changed.

    Unlike a MappingProxyType it can be hashed and sent to another process.

    >>> Metadata({"camera": "X100", "year": 2020})
    Metadata({'camera': 'X100', 'year': 2020.0})

    Args:
        fields: names of letters, digits and "_", and texts, numbers or truth values.

    Raises:
        DataError: a name or a value can't be metadata's.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any] | None = None) -> None:
        checked: dict[str, MetaValue] = {}
        for name, value in (fields or {}).items():
            check_field(name)
            if (problem := value_problem(value)) is not None:
                raise DataError(f"the metadata {name!r} is {problem}; expected a text, a number, true or false.")
            checked[name] = as_value(value)
        self._fields = checked

    def __getitem__(self, name: str) -> MetaValue:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __hash__(self) -> int:
        return hash(frozenset(self._fields.items()))

    def __repr__(self) -> str:
        return f"Metadata({self._fields!r})"


NO_METADATA = Metadata()
"""Shared by all pictures of which nothing is known."""


def field_problem(name: str) -> str | None:
    """What keeps a text from being a field's name, or None.

    >>> field_problem("camera model")
    'not named with letters, digits and "_" alone'
    """
    return None if _FIELD.fullmatch(name) else 'not named with letters, digits and "_" alone'


def check_field(name: str) -> None:
    """Raises a DataError unless `name` can be a metadata field's."""
    if field_problem(name) is not None:
        raise DataError(f"a field of metadata is named with letters, digits and '_', got {name!r}; rename it.")


def value_problem(value: Any) -> str | None:
    """What a value is that can't be a field's, or None.

    >>> value_problem([1]), value_problem("x" * 5000), value_problem(False)
    ('a list', 'a text of more than 4,096 letters', None)
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return _text_problem(value)
    if isinstance(value, int):
        return None if abs(value) <= _EXACT else "a whole number of more than 53 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else "a number that isn't finite"
    return json_kind(value)


def as_value(value: Any) -> MetaValue:
    """A value that has no problem, whole numbers as float64, as an index keeps them."""
    return value if isinstance(value, str | bool) else float(value)


def as_written(value: MetaValue) -> MetaValue | int:
    """A value as people write it: whole numbers as int, where that loses nothing.

    >>> [as_written(value) for value in (2021.0, 1.5, 1e300, True, "X100")]
    [2021, 1.5, 1e+300, True, 'X100']
    """
    whole = isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT
    return int(value) if whole else value


def kind_of(value: MetaValue) -> MetaKind:
    """A value's kind.

    >>> [kind_of(value) for value in ("X100", 2020.0, True)]
    ['text', 'number', 'truth']
    """
    # A truth value is an int to Python.
    return "truth" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def of_one_kind(rows: Iterable[Mapping[str, MetaValue]]) -> list[Metadata]:
    """The rows' metadata with each field of one kind in all: a field of several becomes texts, written as in JSON.

    >>> of_one_kind([{"year": 2020.0}, {"year": "unknown"}, {}])
    [Metadata({'year': '2020'}), Metadata({'year': 'unknown'}), Metadata({})]
    """
    rows, kinds = list(rows), dict[str, set[MetaKind]]()
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(kind_of(value))
    mixed = {name for name, found in kinds.items() if len(found) > 1}
    return [
        Metadata({name: _written(value) if name in mixed else value for name, value in row.items()})
        if row
        else NO_METADATA
        for row in rows
    ]


def _written(value: MetaValue) -> str:
    return value if isinstance(value, str) else json.dumps(as_written(value))


def _text_problem(text: str) -> str | None:
    if len(text) > MAX_META_TEXT:
        return f"a text of more than {MAX_META_TEXT:,} letters"
    try:
        # Bytes that weren't UTF-8 stand in a Python string as lone surrogates.
        text.encode()
    except UnicodeEncodeError:
        return "a text that isn't UTF-8"
    return None
