"""Where the lines, ticks and whiskers of the report's charts go; the template draws them as inline SVG.

Drawn by ourselves since the charts take their colours from the page, light or dark, and stay small.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modalloy.report.numbers import compact, fixed, is_number

COLOURS = 7
"""Colours that the page's style defines, told apart by colour-blind readers too."""
DASHES = 3
"""Dash patterns that it defines: with the colours they make 21 different lines."""
_POINTS = 120


@dataclass(frozen=True)
class Style:
    """How a line is drawn."""

    colour: int
    """Number of its colour."""
    dash: int
    """Number of its dash pattern; 0 is solid."""
    strong: bool = False
    """Whether it is drawn thicker than others."""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    """What it shows."""
    path: str
    """Its SVG path."""
    style: Style
    """How it is drawn."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    """Where, in the chart's units (or in percent of the width, for whiskers)."""
    label: str
    """What it says."""


@dataclass(frozen=True)
class Chart:
    """A line chart in its own units: width x height, with the lines inside the margins."""

    title: str
    """What the vertical axis shows."""
    x_title: str
    """What the horizontal axis shows."""
    width: int
    """Width of the whole drawing."""
    height: int
    """Height of the whole drawing."""
    left: float
    """Where the lines' area starts."""
    bottom: float
    """Where it ends."""
    lines: Sequence[Line]
    """The lines, in drawing order."""
    x_ticks: Sequence[Tick]
    """Marks of the horizontal axis."""
    y_ticks: Sequence[Tick]
    """Marks of the vertical axis."""


@dataclass(frozen=True)
class Whisker:
    """An interval and its value, in percent of the drawing's width; None where they aren't known."""

    low: float | None
    """Lower end."""
    value: float | None
    """The value."""
    high: float | None
    """Upper end."""


def line_styles(names: Sequence[str], strong: str | None) -> dict[str, Style]:
    """A style for each name; neighbours differ in colour and in dashes, and `strong` is thick and solid."""
    others = [name for name in names if name != strong]
    # The strong line's style is the first one, and solid red of colour 0 is nobody else's.
    styles = {name: Style(index % COLOURS, index % DASHES) for index, name in enumerate(others, start=1)}
    return {name: styles.get(name, Style(0, 0, strong=True)) for name in names}


def recall_chart(title: str, curves: Mapping[str, Sequence[float]], styles: Mapping[str, Style]) -> Chart | None:
    """Recall against the number of results K, on a logarithmic axis; None if no curve has a number.

    Args:
        title: what is searched for.
        curves: by system, the recall at K = 1, 2, 3, ... in percent.
        styles: how each system's line is drawn.
    """
    longest = max((len(curve) for curve in curves.values()), default=0)
    ranks = _spaced_ranks(longest)
    points = {name: [(math.log10(k), curve[k - 1]) for k in ranks if k <= len(curve)] for name, curve in curves.items()}
    marks = [k for power in range(7) for k in (10**power, 2 * 10**power, 5 * 10**power) if k <= longest]
    x_ticks = {math.log10(k): f"{k:,}" for k in marks}
    return _chart(title, "results looked at (K)", points, styles, x_ticks, (520, 340), ceiling=100.0)


def training_charts(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """One small chart a metric, against the epoch; metrics without any number are left out.

    Args:
        rows: a fit's metrics, one mapping an epoch; "epoch" counts from 1 where it is missing.
    """
    epochs = [
        float(row["epoch"] if is_number(row.get("epoch")) else position) for position, row in enumerate(rows, start=1)
    ]
    x_ticks = {epoch: compact(epoch) for epoch in (*epochs[:1], *epochs[len(epochs) // 2 :][:1], *epochs[-1:])}
    metrics = dict.fromkeys(key for row in rows for key, value in row.items() if is_number(value))
    metrics.pop("epoch", None)
    charts = []
    for metric in metrics:
        points = [(epoch, row.get(metric)) for epoch, row in zip(epochs, rows, strict=True)]
        title = metric.replace("_", " ")
        charts.append(_chart(title, "epoch", {metric: points}, {metric: Style(1, 0)}, x_ticks, (260, 170)))
    return [chart for chart in charts if chart is not None]


def whiskers(
    estimates: Sequence[tuple[float | None, float | None, float | None]],
) -> tuple[list[Whisker], list[Tick]]:
    """Intervals on one scale, and the scale's marks.

    >>> whiskers([(0.0, 5.0, 10.0)])[0]
    [Whisker(low=4.0, value=50.0, high=96.0)]

    Args:
        estimates: low, value and high of each; None where unknown.
    """
    known = [each for estimate in estimates for each in estimate if each is not None]
    if not known:
        return [Whisker(None, None, None) for _ in estimates], []
    start, end = min(known), max(known)
    scale = _Scale(start, end if end > start else start + 1.0, 4.0, 96.0)
    drawn = [Whisker(*(None if each is None else round(scale(each), 2) for each in estimate)) for estimate in estimates]
    return drawn, _ticks(scale, 5)


@dataclass(frozen=True)
class _Scale:
    """Maps [start, end] to [first, last] linearly."""

    start: float
    end: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        return self.first + (value - self.start) / (self.end - self.start) * (self.last - self.first)


def _chart(
    title: str,
    x_title: str,
    points: Mapping[str, Sequence[tuple[float, Any]]],
    styles: Mapping[str, Style],
    x_ticks: Mapping[float, str],
    size: tuple[int, int],
    ceiling: float = math.inf,
) -> Chart | None:
    values = [float(y) for line in points.values() for _, y in line if is_number(y)]
    if not values:
        return None
    width, height = size
    left, right, top, bottom = 44.0, width - 10.0, 12.0, height - 34.0
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    y = _Scale(low - margin, max(high, min(high + margin, ceiling)), bottom, top)
    ends = [at for line in points.values() for at, _ in line]
    first, last = min(ends), max(ends)
    # One epoch alone stands in the middle.
    x = _Scale(first, last, left, right) if first < last else _Scale(first - 1.0, last + 1.0, left, right)
    # The thick line last, to lie on top.
    order = sorted(points, key=lambda name: styles[name].strong)
    return Chart(
        title,
        x_title,
        width,
        height,
        left,
        bottom,
        [Line(name, _path(points[name], x, y), styles[name]) for name in order],
        [Tick(round(x(value), 1), label) for value, label in x_ticks.items()],
        _ticks(y, height // 40),
    )


def _path(points: Sequence[tuple[float, Any]], x: _Scale, y: _Scale) -> str:
    """Straight lines between neighbours that are numbers; a number alone gives a dot."""
    parts, drawing = [], False
    for at, value in points:
        if is_number(value):
            # The round caps of a line without length show as a dot.
            parts.append(f"{'L' if drawing else 'M'}{x(at):.1f} {y(value):.1f}" + ("" if drawing else "h0"))
        drawing = is_number(value)
    return "".join(parts)


def _ticks(scale: _Scale, count: int) -> list[Tick]:
    """About `count` marks at round numbers: multiples of 1, 2 or 5 times a power of ten."""
    rough = (scale.end - scale.start) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [index * step for index in range(math.ceil(scale.start / step), math.floor(scale.end / step) + 1)]
    # As many decimals as tell neighbours apart, unless that makes a label too long for the margin.
    plain = digits <= 4 and all(abs(value) < 10_000 for value in values)
    return [Tick(round(scale(value), 2), fixed(value, digits) if plain else compact(value)) for value in values]


def _spaced_ranks(longest: int) -> list[int]:
    """1 to `longest`, thinned out so that they are about evenly spaced on a logarithmic axis."""
    if longest < 2:
        return list(range(1, longest + 1))
    ratio = math.log(longest) / (_POINTS - 1)
    return sorted({round(math.exp(index * ratio)) for index in range(_POINTS)})
