"""Writes `report.html`: one file that needs no network, no script and no other file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from PIL.Image import Image

from modalloy.align.words import WordMap
from modalloy.data import open_image
from modalloy.errors import DataError, ImageError
from modalloy.files import write_text
from modalloy.report import numbers
from modalloy.report.charts import (
    Chart,
    Style,
    Tick,
    Whisker,
    line_styles,
    recall_chart,
    training_charts,
    whiskers,
)
from modalloy.report.content import AttentionExample, QueryExample, ReportContent, WordExample
from modalloy.report.pictures import HEAT, SMALL_OVERLAY, Album, Thumbnail, attention_overlay, data_uri
from modalloy.report.results import COLUMNS, DIRECTION_NAMES, HEADINGS, Row, leader, result_rows
from modalloy.report.verdicts import Verdict, verdicts

_OPEN_FITS = 3


def write_report(path: str | Path, content: ReportContent) -> None:
    """Writes a run's report as one HTML file, atomically; the same content gives the same bytes.

    >>> import tempfile
    >>> recall = {"R@1": 50.0, "R@5": 75.0, "R@10": 100.0, "median_rank": 1.5}
    >>> system = {"image_to_text": recall, "text_to_image": recall, "rsum": 450.0}
    >>> result = {"test": {"images": 4, "captions": 8}, "systems": {"HADA": system}, "differences": []}
    >>> file = Path(tempfile.mkdtemp()) / "report.html"
    >>> write_report(file, ReportContent("A run", result))
    >>> "has the highest RSum: 450.0" in file.read_text()
    True

    Args:
        path: the file to write.
        content: what it shows; a picture that can't be read shows as a placeholder with its name.

    Raises:
        DataError: the results lack "systems" or "test" with "images" and "captions", or
            attention isn't a grid of finite weights.
    """
    write_text(path, render_report(content))


def render_report(content: ReportContent) -> str:
    """The HTML that `write_report` writes.

    Raises:
        DataError: as `write_report`.
    """
    # Jinja takes a while to load, and few who import modalloy write a report.
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        # Captions, names and configurations come from anywhere: nothing of them may become markup.
        autoescape=True,
        loader=FunctionLoader(_template),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("fixed", "signed", "compact", "rank", "duration"):
        environment.filters[name] = getattr(numbers, name)
    return environment.get_template("template.html").render(_view(content))


def _template(name: str) -> str:
    return resources.files("modalloy.report").joinpath(name).read_text(encoding="utf-8")


def _view(content: ReportContent) -> dict[str, Any]:
    """The template's variables."""
    report = content.report
    missing = [key for key in ("test", "systems") if not isinstance(report.get(key), Mapping)]
    missing += [f"test.{key}" for key in ("images", "captions") if key not in (report.get("test") or ())]
    if missing:
        raise DataError(f"A report needs results with {' and '.join(missing)}; evaluate the run first.")
    album = Album()
    best = leader(report)
    differences = verdicts(report.get("differences") or ())
    styles = line_styles(list(content.recall_curves), best)
    # The first one is 0 itself, so that it is on the scale.
    (zero, *difference_whiskers), difference_ticks = whiskers(
        [(0.0, 0.0, 0.0), *((each.low, each.rsum, each.high) for each in differences)]
    )
    return {
        "title": content.title,
        "test": report["test"],
        "leader": best,
        "leader_rsum": report["systems"][best]["rsum"] if best is not None else None,
        "level": _percent(report.get("level")),
        "headline": _headline(best, differences),
        "columns": [HEADINGS.get(column, column) for column in COLUMNS],
        "direction_names": DIRECTION_NAMES,
        "results": _results(report),
        "differences": list(zip(differences, difference_whiskers, strict=True)),
        "difference_ticks": difference_ticks,
        "zero": zero.value,
        "stages": [_stages_view(name, staged) for name, staged in (report.get("stages") or {}).items()],
        "styles": styles,
        "recall_charts": _recall_charts(content.recall_curves, styles),
        "fits": [_Fit(name, len(rows), training_charts(rows)) for name, rows in content.training.items() if rows],
        "open_fits": _OPEN_FITS,
        "examples": [_query_view(example, album) for example in content.examples],
        "attentions": [_attention_view(example, album) for example in content.attentions],
        "word_examples": [_word_example_view(example, album) for example in content.words],
        "heat": ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in HEAT),
        "seconds": report.get("seconds") or {},
        "provenance": content.provenance,
        "notes": content.notes,
        # Last, since the sections above fill the album.
        "pictures": album.uris,
    }


@dataclass(frozen=True)
class _Results:
    """A table of systems, each with what is drawn of its RSum."""

    rows: list[tuple[Row, Whisker]]
    ticks: list[Tick]
    headroom: bool


def _results(report: Mapping[str, Any]) -> _Results:
    rows = result_rows(report)
    drawn, ticks = whiskers([row.estimate for row in rows])
    return _Results(list(zip(rows, drawn, strict=True)), ticks, any(row.headroom for row in rows))


def _stages_view(name: str, staged: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "weight": next(iter((staged.get("global_weight") or {}).values()), None),
        "results": _results(staged),
        "level": _percent(staged.get("level")),
        "sentences": [each.sentence for each in verdicts(staged.get("differences") or ())],
    }


@dataclass(frozen=True)
class _Fit:
    name: str
    epochs: int
    charts: list[Chart]


@dataclass(frozen=True)
class _Found:
    """What one system found for a query."""

    system: str
    rank: float | None
    pictures: list[tuple[Thumbnail, bool]]


@dataclass(frozen=True)
class _Overlay:
    """An encoder's attention over a picture: no URI where the picture can't be read."""

    encoder: str
    uri: str | None
    lowest: str
    highest: str


@dataclass(frozen=True)
class _Words:
    """An encoder's attention on a caption: each token, its weight, and its share of the highest."""

    encoder: str
    words: list[tuple[str, str, str]]


@dataclass(frozen=True)
class _WordOverlay:
    """Where a word is found: no URI where the picture can't be read."""

    word: str
    score: str
    uri: str | None
    place: str


def _headline(best: str | None, differences: list[Verdict]) -> list[Verdict]:
    """The differences that the leader is part of, or all where it is part of none."""
    return [each for each in differences if best in (each.a, each.b)] or differences


def _recall_charts(
    recall_curves: Mapping[str, Mapping[str, Sequence[float]]], styles: Mapping[str, Style]
) -> list[Chart]:
    charts = []
    for direction, title in DIRECTION_NAMES.items():
        curves = {name: each[direction] for name, each in recall_curves.items() if direction in each}
        charts.append(recall_chart(title, curves, styles))
    return [chart for chart in charts if chart is not None]


def _query_view(example: QueryExample, album: Album) -> dict[str, Any]:
    return {
        "query": example.query,
        "truth": album.add(example.truth),
        "found": [
            _Found(
                system,
                example.ranks.get(system),
                [(album.add(path), path == example.truth) for path in paths],
            )
            for system, paths in example.results.items()
        ],
    }


def _attention_view(example: AttentionExample, album: Album) -> dict[str, Any]:
    picture = _opened(example.image)
    return {
        "picture": album.add(example.image),
        "caption": example.caption,
        "overlays": [
            _Overlay(
                encoder,
                None if picture is None else data_uri(attention_overlay(picture, weights)),
                _weight(float(weights.min())),
                _weight(float(weights.max())),
            )
            for encoder, weights in example.image_maps.items()
        ],
        "words": [_words(encoder, pairs) for encoder, pairs in example.word_weights.items()],
    }


def _word_example_view(example: WordExample, album: Album) -> dict[str, Any]:
    picture = _opened(example.image)
    return {
        "picture": album.add(example.image),
        "caption": example.caption,
        "found": {name: [_word_overlay(picture, each) for each in maps] for name, maps in example.maps.items()},
    }


def _word_overlay(picture: Image | None, found: WordMap) -> _WordOverlay:
    rows, columns = found.weights.shape
    row, column = divmod(int(found.weights.argmax()), columns)
    return _WordOverlay(
        found.word,
        numbers.fixed(found.score, 2),
        None if picture is None else data_uri(attention_overlay(picture, found.weights, SMALL_OVERLAY)),
        f"strongest in row {row + 1} of {rows}, column {column + 1} of {columns}",
    )


def _opened(path: Path) -> Image | None:
    try:
        return open_image(path)
    except ImageError:
        return None


def _words(encoder: str, pairs: Sequence[tuple[str, float]]) -> _Words:
    weights = [weight if numbers.is_number(weight) else 0.0 for _, weight in pairs]
    highest = max(weights, default=0.0) or 1.0
    return _Words(
        encoder,
        [
            (word, _weight(weight), f"{max(weight, 0.0) / highest:.3f}")
            for (word, _), weight in zip(pairs, weights, strict=True)
        ],
    )


def _weight(value: float) -> str:
    return f"{numbers.fixed(100 * value)}%"


def _percent(level: Any) -> str:
    return f"{numbers.compact(100 * level)}% " if numbers.is_number(level) else ""
