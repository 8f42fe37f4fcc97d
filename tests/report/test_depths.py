"""What the table of depths shows."""

import io

import pytest
from rich.console import Console

from modalloy.errors import DataError
from modalloy.report.depths import depths_table, print_depths, times_lines
from modalloy.report.numbers import MISSING


def choice() -> dict:
    def depth(focal: int, cross: int | None, recall: float, latency: float) -> dict:
        def numbers(value: float) -> dict[str, float]:
            return {"R@1": value, "R@5": value + 1, "R@10": value + 2, "rsum": 3 * value + 3}

        names = ["global", "focal", *(["cross-layer"] if cross else [])]
        stages = {name: numbers(recall - 10 * (len(names) - 1 - place)) for place, name in enumerate(names)}
        times = dict.fromkeys(names, latency / len(names))
        return {
            "config": {"focal_candidates": focal, "cross_candidates": cross},
            "stages": stages,
            "milliseconds": times,
            "latency": latency,
            "batched": {name: time / 10 for name, time in times.items()},
        }

    depths = [depth(10, 10, 48.0, 1.5), depth(50, 10, 59.9, 3.0), depth(50, 20, 60.0, 6.0)]
    return {
        "direction": "image_to_text",
        "loss": 0.2,
        "recall": None,
        "reached": True,
        "measures": ["R@1", "R@10"],
        "chosen": 1,
        "deepest": 2,
        "depths": depths,
    }


def test_recall_and_latency_stand_side_by_side():
    file = io.StringIO()
    print_depths(choice(), Console(file=file))
    lines = file.getvalue().splitlines()
    assert " ".join(" ".join(lines[:2]).split()).startswith("Image to text (* R@1 and R@10 within 0.2 of the deepest)")
    rows = [line.split() for line in lines if line.strip() and line.split()[-1] in ("*", "0.20", "0.15", "0.60")]
    assert rows == [
        [MISSING, MISSING, "40.0", "41.0", "42.0", "123.0", "2.00", "0.20"],
        ["10", "10", "48.0", "49.0", "50.0", "147.0", "1.50", "0.15"],
        ["50", "10", "59.9", "60.9", "61.9", "182.7", "3.00", "0.30", "*"],
        ["50", "20", "60.0", "61.0", "62.0", "183.0", "6.00", "0.60"],
    ]


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"split": "tune"}, "Image to text on tune (* R@1 and R@10 within 0.2 of the deepest)"),
        ({"loss": None, "recall": 55.0}, "Image to text (* at least R@1 and R@10 of 55)"),
        (
            {"loss": None, "recall": 65.5, "measures": ["R@1"], "reached": False, "system": "average"},
            "average, Image to text (no depth reaches R@1 of 65.5; * the deepest)",
        ),
    ],
)
def test_the_title_says_what_was_wanted_and_whether_it_is_reached(changes, title):
    assert str(depths_table(choice() | changes).title) == title


def test_times_of_each_system_stand_in_a_line_a_direction():
    times = {"a, focal": 2.0, "average, focal": 4.126}
    results = {"milliseconds": {"image_to_text": times}, "batched": {"image_to_text": dict.fromkeys(times, 0.5)}}
    assert times_lines(results) == [
        "milliseconds a query (in batches), image to text: a, focal 2.00 (0.50); average, focal 4.13 (0.50)"
    ]
    assert times_lines({}) == []
    with pytest.raises(DataError, match="KeyError: 'batched'"):
        times_lines({"milliseconds": {"image_to_text": times}})


def test_a_damaged_choice_is_named():
    broken = choice()
    del broken["depths"][0]["latency"]
    with pytest.raises(DataError, match="KeyError: 'latency'"):
        depths_table(broken)
