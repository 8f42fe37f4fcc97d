import math

import pytest

from modalloy.errors import ConfigError
from modalloy.index.condition import Condition, check_condition, parse_condition

KINDS = {"year": "number", "camera": "text", "indoors": "truth"}


@pytest.mark.parametrize(
    ("field", "comparison", "value"),
    [
        ("year", "=", True),
        ("year", "=", "2020"),
        ("year", "in", (2020.0, False)),
        ("year", "contains", "20"),
        ("camera", "=", 1.0),
        ("camera", "=", True),
        ("indoors", "=", 1.0),
        ("indoors", "<", True),
        ("indoors", "in", (True,)),
        ("width", "=", "8"),
        ("colour", "=", "red"),
    ],
)
def test_values_are_of_the_fields_kind(field, comparison, value):
    with pytest.raises(ConfigError):
        check_condition(Condition(field, comparison, value), KINDS)


@pytest.mark.parametrize(
    ("comparison", "value"),
    [("in", "x"), ("=", ("x",)), ("=", math.nan), ("<", math.inf), ("in", (math.nan,))],
)
def test_conditions_that_mean_nothing(comparison, value):
    with pytest.raises(ConfigError):
        Condition("year", comparison, value)


@pytest.mark.parametrize("text", ["", "year", "year =", "= 2020", "year = x", "year = nan", "indoors = yes", "a b = 1"])
def test_texts_that_are_no_conditions(text):
    with pytest.raises(ConfigError):
        parse_condition(text, KINDS)


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("year>=2020", Condition("year", ">=", 2020.0)),
        ("camera = O'Hara = 1", Condition("camera", "=", "O'Hara = 1")),
        ("camera in X100, in Y", Condition("camera", "in", ("X100", "in Y"))),
        (" indoors != TRUE ", Condition("indoors", "!=", True)),
        ("camera contains in", Condition("camera", "contains", "in")),
    ],
)
def test_texts_that_are(text, condition):
    assert parse_condition(text, KINDS) == condition
