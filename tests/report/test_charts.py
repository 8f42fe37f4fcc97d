import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modalloy.report.charts import COLOURS, DASHES, line_styles, recall_chart, training_charts, whiskers


def coordinates(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def test_every_system_has_a_line_of_its_own():
    names = [f"system {index}" for index in range(COLOURS * DASHES)]
    styles = line_styles(names, strong="system 8")
    assert list(styles) == names
    assert len({(style.colour, style.dash) for style in styles.values()}) == len(names)
    assert [name for name, style in styles.items() if style.strong] == ["system 8"]


def test_nobody_is_strong_without_a_leader():
    assert not any(style.strong for style in line_styles(["a", "b"], strong=None).values())


def test_recall_rises_from_left_to_right_on_a_logarithmic_axis():
    curve = [float(k) / 10 for k in range(1, 1001)]
    chart = recall_chart("Text to image", {"a": curve}, line_styles(["a"], "a"))
    assert chart is not None
    points = coordinates(chart.lines[0].path)
    assert len(points) < 130
    assert points == sorted(points) and [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    at = {tick.label: tick.at for tick in chart.x_ticks}
    assert at["10"] - at["1"] == pytest.approx(at["1,000"] - at["100"], abs=0.2)
    assert points[0][0] == at["1"] and points[-1][0] == at["1,000"]


def test_the_thick_line_lies_on_top():
    chart = recall_chart("t", {"a": [1.0, 2.0], "b": [2.0, 3.0]}, line_styles(["a", "b"], "a"))
    assert chart is not None
    assert [line.name for line in chart.lines] == ["b", "a"]


@pytest.mark.parametrize("curves", [{}, {"a": []}, {"a": [float("nan")]}])
def test_without_a_number_there_is_no_recall_chart(curves: dict[str, list[float]]):
    assert recall_chart("t", curves, line_styles(list(curves), None)) is None


def test_a_missing_epoch_breaks_the_line_and_a_lone_one_is_a_dot():
    rows = [{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": None}, {"epoch": 3, "loss": 2.0}]
    (chart,) = training_charts([*rows, {"epoch": 4, "loss": 1.0}])
    assert re.sub(r"[\d. ]", "", chart.lines[0].path) == "MhMhL"
    assert [tick.label for tick in chart.x_ticks] == ["1", "3", "4"]


def test_a_chart_for_each_metric_that_has_a_number():
    rows = [{"loss": 1.0, "name": "x", "sometimes": None}, {"loss": 1.0, "name": "y", "validation_rsum": 2.0}]
    assert [chart.title for chart in training_charts(rows)] == ["loss", "validation rsum"]
    assert training_charts([]) == []


finite = st.floats(-1e6, 1e6)


@settings(max_examples=40)
@given(st.lists(st.tuples(finite, finite, finite).map(sorted).map(tuple), min_size=1, max_size=5))
def test_whiskers_keep_the_order_and_stay_inside(estimates: list[tuple[float, float, float]]):
    drawn, ticks = whiskers(estimates)
    for whisker in drawn:
        assert 0 <= whisker.low <= whisker.value <= whisker.high <= 100
    assert [tick.at for tick in ticks] == sorted(tick.at for tick in ticks)
    assert all(0 <= tick.at <= 100 for tick in ticks)


@settings(max_examples=40)
@given(st.lists(st.floats(width=32) | st.none(), min_size=1, max_size=6))
def test_any_metric_can_be_drawn(values: list[float | None]):
    for chart in training_charts([{"loss": value} for value in values]):
        for x, y in coordinates(chart.lines[0].path):
            assert chart.left <= x <= chart.width and 0 <= y <= chart.bottom


def test_marks_close_to_each_other_read_differently():
    _, ticks = whiskers([(412.1, 412.4, 412.9)])
    assert [tick.label for tick in ticks] == ["412.2", "412.4", "412.6", "412.8"]


def test_unknown_ends_are_not_drawn():
    drawn, ticks = whiskers([(None, None, None)])
    assert (drawn[0].low, drawn[0].value, drawn[0].high, ticks) == (None, None, None, [])
