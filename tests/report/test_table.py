import copy
import io
from typing import Any

import pytest
import torch
from rich.console import Console

from modalloy.errors import DataError
from modalloy.evaluation import Ranks, compare
from modalloy.report.table import differences_table, print_report, systems_table

NUMBERS = ("i2t R@1", "i2t R@5", "i2t R@10", "t2i R@1", "t2i R@5", "t2i R@10", "RSum")


def system(first: float, rsum: float, **more: Any) -> dict[str, Any]:
    recall = {"R@1": first, "R@5": 60.04, "R@10": 80.0}
    return {"image_to_text": recall, "text_to_image": {**recall, "R@1": 99.0 - first}, "rsum": rsum, **more}


@pytest.fixture
def comparison() -> dict[str, Any]:
    return {
        "test": {"images": 1280, "captions": 2560},
        "systems": {
            "minilm [small]": system(40.0, 400.0, low=390.0, high=410.0, spread=None, headroom=None),
            "HADA": system(50.0, 420.26, low=411.0, high=431.04, spread=1.25, headroom=0.4),
        },
        "differences": [
            {"a": "HADA", "b": "minilm [small]", "rsum": 20.26, "low": 8.0, "high": 31.0},
            {"a": "HADA", "b": "B1", "rsum": 2.0, "low": -1.0, "high": 5.0},
            {"a": "HADA", "b": "B2", "rsum": -3.0, "low": -5.0, "high": -1.0},
        ],
        "oracle": system(70.0, 500.0),
        "level": 0.95,
    }


def text_of(comparison: dict[str, Any], **options: Any) -> str:
    console = Console(file=io.StringIO(), width=200, **options)
    print_report(comparison, console)
    return console.file.getvalue()


def lines_with(comparison: dict[str, Any], start: str) -> list[str]:
    lines = [" ".join(line.split()) for line in text_of(comparison).splitlines()]
    return [line for line in lines if line.startswith(start)]


def test_every_number_stands_in_its_row(comparison: dict[str, Any]) -> None:
    assert lines_with(comparison, "minilm") == ["minilm [small] 40.0 60.0 80.0 59.0 60.0 80.0 400.0 [390.0, 410.0]"]
    assert lines_with(comparison, "HADA")[0] == "HADA 50.0 60.0 80.0 49.0 60.0 80.0 420.3 ± 1.2 [411.0, 431.0] 40%"
    assert lines_with(comparison, "oracle") == ["oracle of the inputs 70.0 60.0 80.0 29.0 60.0 80.0 500.0"]


def test_size_and_level_are_told(comparison: dict[str, Any]) -> None:
    shown = text_of(comparison)
    assert "Split test: 1,280 images, 2,560 captions" in shown
    assert "95% interval" in shown


def test_another_split(comparison: dict[str, Any]) -> None:
    comparison["val"] = comparison.pop("test")
    assert "Split val: 1,280 images" in text_of(comparison)


def test_the_best_system_is_bold_and_the_oracle_is_not(comparison: dict[str, Any]) -> None:
    table = systems_table(comparison)
    columns = {name: list(table.columns[place].cells) for place, name in enumerate(NUMBERS, start=1)}
    bold = {name: [bool(cell.spans) for cell in cells] for name, cells in columns.items()}
    assert bold["i2t R@1"] == [False, True, False]
    assert bold["i2t R@5"] == [True, True, False]
    assert bold["t2i R@1"] == [True, False, False]
    assert bold["RSum"] == [False, True, False]


def test_a_difference_is_starred_where_its_interval_excludes_zero(comparison: dict[str, Any]) -> None:
    rows = lines_with(comparison, "HADA -")
    assert rows == [
        "HADA - minilm [small] +20.3 [+8.0, +31.0] *",
        "HADA - B1 +2.0 [-1.0, +5.0]",
        "HADA - B2 -3.0 [-5.0, -1.0] *",
    ]


def test_without_what_may_be_missing(comparison: dict[str, Any]) -> None:
    for name in ("differences", "oracle", "level"):
        del comparison[name]
    for each in comparison["systems"].values():
        for name in ("low", "high", "spread", "headroom"):
            del each[name]
    shown = text_of(comparison)
    assert "headroom" not in shown
    assert "Differences" not in shown
    assert lines_with(comparison, "HADA") == ["HADA 50.0 60.0 80.0 49.0 60.0 80.0 420.3"]


def test_shows_what_compare_gives() -> None:
    torch.manual_seed(0)
    caption_image = torch.arange(30).repeat_interleave(2)
    runs = [Ranks(torch.randint(1, 20, (30,)).float(), torch.randint(1, 20, (60,)).float()) for _ in range(4)]
    result = compare(
        {"one": runs[:1], "two": runs[1:2], "fused": runs[2:]},
        caption_image,
        reference="fused",
        inputs=("one", "two"),
        samples=50,
    )
    comparison = {"test": {"images": 30, "captions": 60}, **result.to_dict()}
    fused = lines_with(comparison, "fused")[0]
    assert fused.split()[7] == f"{result.systems['fused'].metrics.rsum:.1f}"
    assert len(lines_with(comparison, "fused -")) == 2
    assert len(lines_with(comparison, "oracle of the inputs")) == 1


def test_a_pipe_gets_unfolded_lines(comparison: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    name = "an alloy of many encoders with a long name, stage two"
    comparison["systems"][name] = comparison["systems"].pop("HADA")
    print_report(comparison)
    line = next(line for line in capsys.readouterr().out.splitlines() if name in line)
    assert line.split()[-1] == "40%"


@pytest.mark.parametrize(
    "path", [["systems"], ["test"], ["systems", "HADA", "rsum"], ["systems", "HADA", "text_to_image"]]
)
def test_a_damaged_comparison_is_named(comparison: dict[str, Any], path: list[str]) -> None:
    damaged: Any = copy.deepcopy(comparison)
    inner = damaged
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    with pytest.raises(DataError, match=rf"{path[-1]}.*evaluate again"):
        systems_table(damaged)


def test_a_damaged_difference_is_named(comparison: dict[str, Any]) -> None:
    del comparison["differences"][0]["low"]
    with pytest.raises(DataError, match="low"):
        differences_table(comparison)
