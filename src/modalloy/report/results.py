"""The results table: one row a system, and which of its numbers are the best of their column."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modalloy.report.numbers import fixed, is_number, rank

DIRECTION_NAMES = {"image_to_text": "Image to text", "text_to_image": "Text to image"}
COLUMNS = ("R@1", "R@5", "R@10", "median_rank")
HEADINGS = {"median_rank": "median rank"}


@dataclass(frozen=True)
class Cell:
    """One number as it is written."""

    text: str
    """The number, or a dash."""
    best: bool = False
    """Whether no other row has a better one, as written."""


@dataclass(frozen=True)
class Row:
    """One system."""

    name: str
    """Its name."""
    kind: str
    """"input", "fusion" or "bound" (the oracle, which is no system)."""
    cells: Sequence[Cell]
    """`COLUMNS` of each direction."""
    rsum: Cell
    """RSum."""
    spread: str | None
    """Standard deviation of RSum over the seeds, where there are several."""
    headroom: str | None
    """Share of the oracle's headroom taken, where it is known."""
    estimate: tuple[float | None, float | None, float | None]
    """RSum's interval: low, value, high."""


def result_rows(report: Mapping[str, Any]) -> list[Row]:
    """The rows of the systems in the report's order, then the oracle where there is one."""
    systems = dict(report["systems"])
    inputs = set(report.get("inputs", ()))
    best = _best_texts(list(systems.values()))
    rows = [_row(name, "input" if name in inputs else "fusion", system, best) for name, system in systems.items()]
    bound = report.get("oracle")
    if bound and all(direction in bound for direction in DIRECTION_NAMES):
        rows.append(_row("Oracle: an input answers", "bound", bound, {}))
    return rows


def leader(report: Mapping[str, Any]) -> str | None:
    """The system with the highest RSum; None if no system has one."""
    systems = {name: each for name, each in report["systems"].items() if is_number(each.get("rsum"))}
    return max(systems, key=lambda name: systems[name]["rsum"]) if systems else None


def _row(name: str, kind: str, system: Mapping[str, Any], best: Mapping[str, str]) -> Row:
    def cell(key: str) -> Cell:
        text = _writer(key)(_value(system, key))
        return Cell(text, best.get(key) == text)

    headroom = system.get("headroom")
    low, value, high = (system.get(key) for key in ("low", "rsum", "high"))
    return Row(
        name,
        kind,
        [cell(key) for key in _keys()],
        cell("rsum"),
        fixed(system["spread"]) if is_number(system.get("spread")) else None,
        f"{fixed(100 * headroom, 0)}%" if is_number(headroom) and headroom is not None else None,
        (_finite(low), _finite(value), _finite(high)),
    )


def _best_texts(systems: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Each column's best number as written, so that rows that read the same are marked alike."""
    best = {}
    for key in [*_keys(), "rsum"]:
        values = [value for value in (_value(system, key) for system in systems) if is_number(value)]
        if len(values) > 1:
            best[key] = _writer(key)(min(values) if key.endswith("median_rank") else max(values))
    return best


def _keys() -> list[str]:
    return [f"{direction}/{column}" for direction in DIRECTION_NAMES for column in COLUMNS]


def _value(system: Mapping[str, Any], key: str) -> Any:
    direction, _, column = key.rpartition("/")
    return (system.get(direction) or {}).get(column) if direction else system.get(column)


def _writer(key: str) -> Callable[[Any], str]:
    return rank if key.endswith("median_rank") else fixed


def _finite(value: Any) -> float | None:
    return float(value) if is_number(value) else None
