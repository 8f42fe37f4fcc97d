import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from modalloy.align.words import WordMap
from modalloy.errors import DataError
from modalloy.report.content import AttentionExample, QueryExample, ReportContent, WordExample
from modalloy.report.numbers import MISSING
from modalloy.report.page import render_report, write_report
from modalloy.report.pictures import SMALL_OVERLAY

SECTIONS = [
    *("headline", "results", "differences", "stages", "recall", "training", "examples"),
    *("attention", "words", "making"),
]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A page's sections, tags, links, table rows and text; an unbalanced tag is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data.strip("\n")

    @property
    def sections(self) -> list[str]:
        return [value for key, value in self.attributes if key == "id" and value in SECTIONS]

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def row(self, name: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == name)


def test_a_full_report_has_every_section_and_every_link_leads_to_one(content: ReportContent):
    page = Page(render_report(content))
    assert page.sections == SECTIONS
    links = [value for key, value in page.attributes if key == "href"]
    assert links == [f"#{section}" for section in SECTIONS[1:]]


def test_the_stages_of_an_input_stand_in_a_table_of_their_own(content: ReportContent):
    page = Page(render_report(content))
    assert "Weight of the embeddings in the later stages: 0.5." in page.text
    assert "Encoder <A>" in page.text and "focal beats global by 30.0 points" in page.text
    assert page.row("focal")[-2:] == ["270.0", ""]
    # Where no oracle is, nothing is said of its headroom.
    assert page.text.count("headroom taken") == 1


def test_without_stages_there_is_no_such_section(content: ReportContent):
    del content.report["stages"]
    assert "stages" not in Page(render_report(content)).sections


def test_the_headline_says_what_the_numbers_say(content: ReportContent):
    text = Page(render_report(content)).text
    assert "HADA has the highest RSum: 360.0 of 600." in text
    assert "HADA beats Encoder A by 60.0 points of RSum (interval 41.5 to 78.5)." in text
    assert "HADA and B1 (rank average) are too close to call" in text
    assert "Tested on 1,280 images and 2,612 captions." in text


def test_the_results_table_holds_the_numbers_and_marks_the_best(content: ReportContent):
    html = render_report(content)
    recalls = ["60.0", "60.0", "60.0", "2"]
    assert Page(html).row("HADA") == ["HADA", *recalls, *recalls, "360.0 ± 1.2", "", "50%"]
    assert "<b>360.0</b>" in html and "<b>330.0</b>" not in html
    assert Page(html).row("Oracle: an input answers")[9] == "420.0"


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(content: ReportContent):
    html = render_report(content)
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "http:" not in html and "https:" not in html and "@import" not in html
    sources = [value for key, value in page.attributes if key in ("src", "srcset", "xlink:href")]
    sources += re.findall(r"url\(\"?([^)\"]*)", html)
    assert len(sources) == 6
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert not [key for key, _ in page.attributes if key.startswith("on")]


def test_text_from_outside_is_never_markup(content: ReportContent, pictures: list[Path]):
    evil = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>"
    recall = content.report["systems"]["HADA"]
    html = render_report(
        ReportContent(
            title=evil,
            report={
                **content.report,
                "systems": {evil: recall},
                "differences": [{"a": evil, "b": evil, "rsum": 1.0, "low": 0.5, "high": 1.5}],
                "seconds": {evil: 1.0},
            },
            recall_curves={evil: {"image_to_text": [10.0, 20.0]}},
            training={evil: [{evil: 1.0}]},
            examples=[QueryExample(evil, pictures[0].with_name(evil[:8]), {evil: pictures}, {evil: 1.0})],
            attentions=[AttentionExample(pictures[0], evil, {evil: torch.ones(2, 2)}, {evil: [(evil, 0.5)]})],
            words=[WordExample(pictures[0], evil, {evil: [WordMap(evil, torch.ones(2, 2), 0.5)]})],
            provenance={evil: evil, "lines": f"{evil}\n{evil}"},
            notes=[evil],
        )
    )
    page = Page(html)
    assert "script" not in page.tags and "<script" not in html
    assert page.tags.count("img") == 2
    assert not [key for key, _ in page.attributes if key == "onerror"]
    assert "&lt;script&gt;alert" in html


def test_the_same_content_gives_the_same_bytes(content: ReportContent, tmp_path: Path):
    write_report(tmp_path / "once.html", content)
    write_report(tmp_path / "deep" / "twice.html", content)
    assert (tmp_path / "once.html").read_bytes() == (tmp_path / "deep" / "twice.html").read_bytes()
    assert not list(tmp_path.glob(".partial*"))


def test_without_the_optional_parts_only_the_results_stay(results: dict[str, object]):
    bare = {"test": results["test"], "systems": results["systems"]}
    page = Page(render_report(ReportContent("Bare", bare)))
    assert page.sections == ["headline", "results"]
    assert [value for key, value in page.attributes if key == "href"] == ["#results"]


def test_what_is_no_number_becomes_a_dash(content: ReportContent, pictures: list[Path]):
    nan = float("nan")
    broken = {"image_to_text": {"R@1": nan, "R@5": None}, "text_to_image": None, "rsum": nan}
    report = {
        **content.report,
        "systems": {"Broken": broken, "HADA": content.report["systems"]["HADA"]},
        "differences": [{"a": "HADA", "b": "Broken", "rsum": nan, "low": None, "high": None}],
        "seconds": {"extract": None},
        "oracle": None,
        "level": None,
    }
    changed = dataclasses.replace(
        content,
        report=report,
        recall_curves={"Broken": {"image_to_text": [nan, nan]}, "HADA": {"image_to_text": [50.0, nan, 60.0]}},
        training={"empty": [], "blank": [{"epoch": 1, "loss": None}], "gap": [{"loss": 1.0}, {"loss": nan}]},
        examples=[QueryExample("a query", pictures[0], {"HADA": []}, {"HADA": float("inf")})],
        attentions=[AttentionExample(pictures[0], "a", {}, {"A": [("a", nan), ("b", 0.0)], "B": []})],
    )
    html = render_report(changed)
    page = Page(html)
    assert page.row("Broken") == ["Broken", *[MISSING] * 9, "", ""]
    assert "HADA and Broken weren't compared." in page.text
    assert "No metric has a number." in page.text
    assert f"rank {MISSING}" in page.text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", html).lower()


def test_without_any_system_it_says_so(results: dict[str, object]):
    page = Page(render_report(ReportContent("Nothing", {**results, "systems": {}, "differences": []})))
    assert "No system has a result yet." in page.text


def test_an_unreadable_picture_shows_its_name(content: ReportContent, pictures: list[Path], tmp_path: Path):
    damaged, gone = tmp_path / "damaged.png", tmp_path / "gone.png"
    damaged.write_bytes(b"not a picture")
    changed = dataclasses.replace(
        content,
        examples=[QueryExample("a query", gone, {"HADA": [damaged, pictures[0]]}, {"HADA": 2.0})],
        attentions=[AttentionExample(gone, "a", {"A": torch.ones(2, 2)}, {})],
        words=[WordExample(damaged, "a square", {"A": [WordMap("square", torch.ones(2, 2), 0.5)]})],
    )
    html = render_report(changed)
    text = Page(html).text
    assert "damaged.png" in text and "gone.png" in text
    assert html.count("data:image/webp") == 1
    assert re.search(r"damaged\.pngcan.t be read the picture square 0\.50", text)
    assert "isn&#39;t a picture in" in html


def test_a_word_is_shown_over_the_picture_with_what_it_adds(content: ReportContent):
    html = render_report(content)
    page = Page(html)
    assert "a green square Encoder A the picture green 0.61 square 0.50" in page.text
    alts = [value for key, value in page.attributes if key == "alt"]
    assert "Attention between “green” and green.png, strongest in row 1 of 3, column 2 of 3" in alts
    small = [source for source in re.findall(r'src="data:image/webp;base64,([^"]*)', html)][1:]
    assert [Image.open(io.BytesIO(base64.b64decode(each))).size for each in small] == [(SMALL_OVERLAY,) * 2] * 2


def test_a_picture_is_embedded_once_however_often_it_is_shown(content: ReportContent):
    many = dataclasses.replace(content, examples=list(content.examples) * 5, attentions=(), words=())
    assert render_report(many).count("data:image/webp") == 3


@pytest.mark.parametrize("key", ["test", "systems"])
def test_results_that_lack_a_part_are_refused(content: ReportContent, key: str):
    report = {name: value for name, value in content.report.items() if name != key}
    with pytest.raises(DataError, match=f"needs results with {key}"):
        render_report(dataclasses.replace(content, report=report))


def test_a_test_split_without_counts_is_refused(content: ReportContent):
    with pytest.raises(DataError, match=r"needs results with test\.captions;"):
        render_report(dataclasses.replace(content, report={**content.report, "test": {"images": 3}}))
