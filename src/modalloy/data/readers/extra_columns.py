"""The columns of a table that are nothing else: they become the pictures' metadata."""

import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modalloy.data.metadata import MetaValue, as_value, field_problem, value_problem
from modalloy.data.readers.collection import numbered_captions

_SHOWN = 5
# As JSON writes numbers: "007" is a name, and so is what float64 would round.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?")
_log = logging.getLogger(__name__)


class ExtraColumns:
    """Gathers one table's metadata, row by row, and counts what can't be metadata.

    >>> columns = ExtraColumns(known={"path"})
    >>> columns.of_row({"path": "a.jpg", "year": 2020, "boxes": [1, 2], "camera": None})
    {'year': 2020.0}
    >>> columns.left_out
    Counter({('boxes', 'a list'): 1})

    Args:
        known: the columns that are something else, besides numbered captions.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self._known = set(known)
        self._varying: set[str] = set()
        self.left_out: Counter[tuple[str, str]] = Counter()
        """How many rows have a column that can't be metadata, by its name and the reason."""

    def of_row(self, row: Mapping[str, Any]) -> dict[str, MetaValue]:
        """The columns of a row that are metadata; null and an empty text are none."""
        found = {}
        for name, value in row.items():
            if name in self._known or numbered_captions((name,)) or value is None or value == "":
                continue
            if (problem := field_problem(name) or value_problem(value)) is None:
                found[sys.intern(name)] = as_value(value)
            else:
                self.left_out[name, problem] += 1
        return found

    def join(self, first: dict[str, MetaValue], other: Mapping[str, MetaValue]) -> None:
        """Adds to a picture's metadata what another row of it says."""
        for name, value in other.items():
            # A number beside a truth value would equal it.
            if json.dumps(first.setdefault(name, value)) != json.dumps(value):
                self._varying.add(name)

    def finish(self, pictures: Iterable[dict[str, MetaValue]], path: Path) -> None:
        """Drops the columns that differ between rows of one picture, which are its captions', and logs what is lost."""
        for picture in pictures:
            for name in self._varying & picture.keys():
                del picture[name]
                self.left_out[name, "different for captions of one picture"] += 1
        if self.left_out:
            shown = [f"{name!r} ({count:,}: {why})" for (name, why), count in self.left_out.most_common(_SHOWN)]
            more = len(self.left_out) - len(shown)
            _log.info(
                "%s: left out of the metadata: %s%s", path, ", ".join(shown), f" and {more:,} more" if more else ""
            )


def read_numbers(pictures: Iterable[dict[str, MetaValue]]) -> None:
    """Turns texts into numbers, in place, in the fields that hold nothing but numbers.

    >>> rows = [{"year": "2020", "place": "7"}, {"year": "1.5", "place": "07"}]
    >>> read_numbers(rows)
    >>> rows
    [{'year': 2020.0, 'place': '7'}, {'year': 1.5, 'place': '07'}]
    """
    pictures = list(pictures)
    names = {name for picture in pictures for name in picture}
    for picture in pictures:
        names -= {name for name, value in picture.items() if not _NUMBER.fullmatch(str(value))}
    for picture in pictures:
        for name in names & picture.keys():
            picture[name] = float(picture[name])
