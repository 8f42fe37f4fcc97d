import pytest

from modalloy.report.results import leader, result_rows


def test_rows_keep_the_order_and_the_oracle_comes_last(results: dict[str, object]):
    rows = result_rows(results)
    assert [(row.name, row.kind) for row in rows] == [
        ("Encoder A", "input"),
        ("B1 (rank average)", "fusion"),
        ("HADA", "fusion"),
        ("Oracle: an input answers", "bound"),
    ]
    assert (rows[2].spread, rows[2].headroom, rows[2].estimate) == ("1.2", "50%", (350.0, 360.0, 370.0))


def test_the_best_of_a_column_is_marked_even_where_two_read_the_same(results: dict[str, object]):
    systems = {
        name: {"image_to_text": {"R@1": recall, "median_rank": median}, "text_to_image": {}, "rsum": recall}
        for name, recall, median in (("a", 50.04, 3.0), ("b", 50.01, 2.0), ("c", 49.0, 9.0))
    }
    rows = result_rows({**results, "systems": systems})
    assert [row.cells[0].best for row in rows] == [True, True, False, False]
    assert [row.cells[3].best for row in rows] == [False, True, False, False]
    assert [row.rsum.best for row in rows] == [True, True, False, False]


def test_a_lone_system_is_no_best(results: dict[str, object]):
    systems = {"only": results["systems"]["HADA"]}
    (row,) = result_rows({"systems": systems})
    assert not row.rsum.best


@pytest.mark.parametrize(
    "rsums, expected",
    [({"a": 1.0, "b": 2.0}, "b"), ({"a": float("nan"), "b": 2.0}, "b"), ({"a": None}, None), ({}, None)],
)
def test_the_leader_has_the_highest_known_rsum(rsums: dict[str, float | None], expected: str | None):
    assert leader({"systems": {name: {"rsum": rsum} for name, rsum in rsums.items()}}) == expected
