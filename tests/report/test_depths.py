"""What the table of depths shows."""

import io

import pytest
from rich.console import Console

from modalloy.errors import DataError
from modalloy.report.depths import depths_table, print_depths
from modalloy.report.numbers import MISSING


def choice() -> dict:
    def depth(first: int, second: int | None, recall: float, latency: float) -> dict:
        def numbers(value: float) -> dict[str, float]:
            return {"R@1": value, "R@5": value + 1, "R@10": value + 2, "rsum": 3 * value + 3}

        names = ["global", "focal", *(["cross-layer"] if second else [])]
        stages = {name: numbers(recall - 10 * (len(names) - 1 - place)) for place, name in enumerate(names)}
        times = dict.fromkeys(names, latency / len(names))
        return {
            "config": {"first": first, "second": second},
            "stages": stages,
            "milliseconds": times,
            "latency": latency,
        }

    depths = [depth(10, 10, 48.0, 1.5), depth(50, 10, 59.9, 3.0), depth(50, 20, 60.0, 6.0)]
    return {
        "direction": "image_to_text",
        "loss": 0.2,
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
    rows = [line.split() for line in lines if line.strip() and line.split()[-1] in ("*", "2.00", "1.50", "6.00")]
    assert rows == [
        [MISSING, MISSING, "40.0", "41.0", "42.0", "123.0", "2.00"],
        ["10", "10", "48.0", "49.0", "50.0", "147.0", "1.50"],
        ["50", "10", "59.9", "60.9", "61.9", "182.7", "3.00", "*"],
        ["50", "20", "60.0", "61.0", "62.0", "183.0", "6.00"],
    ]


def test_a_damaged_choice_is_named():
    broken = choice()
    del broken["depths"][0]["latency"]
    with pytest.raises(DataError, match="KeyError: 'latency'"):
        depths_table(broken)
