import pytest

from modalloy.report.verdicts import Verdict, verdicts


@pytest.mark.parametrize(
    "low, high, outcome, says",
    [
        (0.5, 3.5, "ahead", "HADA beats B1 by 2.0"),
        (-3.5, -0.5, "behind", "HADA falls behind B1 by"),
        (-1.0, 5.0, "open", "too close to call"),
        (0.0, 4.0, "open", "includes 0"),
        (-4.0, 0.0, "open", "includes 0"),
        (None, None, "unknown", "no interval is known"),
    ],
)
def test_the_interval_decides(low: float | None, high: float | None, outcome: str, says: str):
    sign = -1.0 if outcome == "behind" else 1.0
    verdict = Verdict("HADA", "B1", sign * 2.0, low, high)
    assert verdict.outcome == outcome
    assert says in verdict.sentence


def test_a_loss_is_given_as_a_positive_number_of_points():
    sentence = Verdict("a", "b", -2.0, -3.5, -0.5).sentence.replace("\N{MINUS SIGN}", "-")
    assert sentence == "a falls behind b by 2.0 points of RSum (interval -3.5 to -0.5)."


def test_numbers_that_are_none_are_unknown():
    (verdict,) = verdicts([{"a": "x", "b": "y", "rsum": float("nan"), "low": "?", "high": None}])
    assert (verdict.rsum, verdict.low, verdict.high) == (None, None, None)
    assert verdict.sentence == "x and y weren't compared."
