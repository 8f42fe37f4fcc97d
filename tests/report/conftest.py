"""A small run's report."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from modalloy.align.words import WordMap
from modalloy.report.content import AttentionExample, QueryExample, ReportContent, WordExample


def system(rsum: float, **more: object) -> dict[str, object]:
    """A system's results; RSum is split evenly over the six recalls."""
    recall = {"R@1": rsum / 6, "R@5": rsum / 6, "R@10": rsum / 6, "median_rank": 2.0, "mean_rank": None}
    return {"image_to_text": recall, "text_to_image": recall, "rsum": rsum, **more}


@pytest.fixture
def results() -> dict[str, object]:
    return {
        "test": {"images": 1280, "captions": 2612},
        "systems": {
            "Encoder A": system(300.0, low=290.0, high=310.0, seeds=1, spread=None, headroom=None),
            "B1 (rank average)": system(330.0, low=320.0, high=340.0, seeds=1, spread=None, headroom=0.2),
            "HADA": system(360.0, low=350.0, high=370.0, seeds=3, spread=1.25, headroom=0.5),
        },
        "differences": [
            {"a": "HADA", "b": "Encoder A", "rsum": 60.0, "low": 41.5, "high": 78.5},
            {"a": "HADA", "b": "B1 (rank average)", "rsum": 30.0, "low": -2.5, "high": 62.5},
        ],
        "inputs": ["Encoder A"],
        "best_input": "Encoder A",
        "oracle": system(420.0),
        "level": 0.95,
        "seconds": {"extract": 12.3, "align": 75.0},
        "stages": {
            "Encoder <A>": {
                "systems": {
                    "global": system(240.0, low=230.0, high=250.0),
                    "focal": system(270.0, low=260.0, high=280.0),
                },
                "differences": [{"a": "focal", "b": "global", "rsum": 30.0, "low": 12.5, "high": 42.5}],
                "level": 0.95,
                "global_weight": {"Encoder <A>": 0.5},
            }
        },
    }


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = []
    for index, colour in enumerate(("red", "green", "blue")):
        paths.append(tmp_path / f"{colour}.png")
        Image.new("RGB", (200 + 40 * index, 180), colour).save(paths[-1])
    return paths


@pytest.fixture
def content(results: dict[str, object], pictures: list[Path]) -> ReportContent:
    red, green, blue = pictures
    curves = {name: [40.0, 60.0, 70.0 + index] for index, name in enumerate(results["systems"])}
    return ReportContent(
        title="Red & blue",
        report=results,
        recall_curves={name: {"image_to_text": curve, "text_to_image": curve} for name, curve in curves.items()},
        training={
            "HADA, seed 0": [
                {"epoch": 1, "loss": 2.0, "validation_rsum": None},
                {"epoch": 2, "loss": 1.5, "validation_rsum": 310.0},
            ]
        },
        examples=[
            QueryExample(
                "a red square",
                red,
                {"Encoder A": [blue, green], "HADA": [red, blue]},
                {"Encoder A": 12.5, "HADA": 1.0},
            )
        ],
        attentions=[
            AttentionExample(
                red,
                "a red square",
                {"Encoder A": torch.tensor([[0.125, 0.25], [0.0, 0.625]])},
                {"Encoder A": [("red", 0.75), ("square", 0.25)]},
            )
        ],
        words=[
            WordExample(
                green,
                "a green square",
                {
                    "Encoder A": [
                        WordMap("green", torch.eye(3)[[1, 2, 0]] / 3, 0.614),
                        WordMap("square", torch.ones(3, 3), 0.5),
                    ]
                },
            )
        ],
        provenance={"configuration": "collection: demo\nseeds: [0]\n", "modalloy": "0.1.0"},
        notes=["The test split was ranked once."],
    )
