"""The page in a real browser, Debian's Chromium, against the real service over a small index of drawn pictures."""

import base64
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright
from serve.page_toys import MARKUP, PICTURES, drawn, drawn_index, served

from modalloy.serve import ServeConfig

QUIET = [
    "--no-sandbox",
    "--no-first-run",
    *(f"--disable-{each}" for each in ("gpu", "quic", "background-networking", "component-update", "sync")),
]
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
RERANKED = 5
INPUTS = ["Bright + words", "Deep + sentences"]


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium")
    if program is None:
        missing = "no program 'chromium', which Debian's package of that name has; the page isn't tried"
        if os.environ.get("MODALLOY_REQUIRE_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    # Not longer than this module: its event loop is seen as running in this thread.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return drawn_index(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def address(index):
    with served(index, ServeConfig()) as address:
        yield address


class Tabs:
    """Opens tabs, and knows what their consoles complained of; tabs without wishes are one."""

    def __init__(self, browser, address):
        self.browser, self.address, self.problems, self.usual = browser, address, [], None

    def __call__(self, path="/", before=lambda tab: None, **wishes):
        if wishes or self.usual is None:
            tab = self._new(wishes)
            self.usual = self.usual if wishes else tab
        else:
            tab = self.usual
        before(tab)
        tab.goto(path)
        return tab

    def _new(self, wishes):
        desktop = {"base_url": self.address, "viewport": {"width": 1280, "height": 860}}
        tab = self.browser.new_context(**{**desktop, **wishes}).new_page()
        tab.set_default_timeout(10_000)
        tab.on("console", lambda said: said.type in ("error", "warning") and self.problems.append(said.text))
        tab.on("pageerror", lambda error: self.problems.append(str(error)))
        return tab


@pytest.fixture(scope="module")
def all_tabs(browser, address):
    return Tabs(browser, address)


@pytest.fixture
def tabs(all_tabs):
    all_tabs.problems.clear()
    yield all_tabs
    assert all_tabs.problems == []


def shoot(tab, name):
    """Keeps a picture of the page, where they are wanted."""
    if folder := os.environ.get("MODALLOY_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        tab.wait_for_load_state("networkidle")
        tab.screenshot(path=Path(folder) / f"{name}.png")


def search(tab, text):
    tab.get_by_role("searchbox").fill(text)
    tab.keyboard.press("Enter")


def tiles(tab):
    return tab.locator("#results a[data-id]")


def first(tab, colour):
    """Waits until the first answer is of a colour."""
    expect(tiles(tab).first).to_have_attribute("data-id", re.compile(f"^{colour}"))


def hand_over(tab, event, content, type="image/png", name="mine.png"):
    """Drops or pastes a file, as a browser would."""
    tab.evaluate(
        """([event, content, type, name]) => {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type }));
            const options = { bubbles: true, cancelable: true };
            const given = event === "paste"
                ? new ClipboardEvent(event, { ...options, clipboardData: transfer })
                : new DragEvent(event, { ...options, dataTransfer: transfer });
            document.body.dispatchEvent(given);
        }""",
        [event, base64.b64encode(content).decode(), type, name],
    )


def test_starts_with_what_to_try(tabs):
    tab = tabs()
    expect(tab.get_by_role("searchbox")).to_be_focused()
    expect(tab.get_by_role("searchbox")).to_have_attribute("placeholder", f"Search {PICTURES} pictures")
    expect(tab.get_by_text("Drop a picture anywhere")).to_be_visible()
    # An encoder that is no alloy has no inputs to show, and there is no second stage.
    expect(tab.locator("#tools")).to_have_text("What to findPicturesCaptionsWithoutFilter")
    expect(tab.locator("#about")).to_have_text(f"{PICTURES} pictures, {2 * PICTURES} captions")
    shoot(tab, "start")


def test_finds_by_words_in_rows_of_equal_height(tabs):
    tab = tabs()
    search(tab, "blue")
    first(tab, "blue")
    expect(tab.get_by_role("status")).to_contain_text(f"The best 24 of {PICTURES} pictures")
    assert "text=blue" in tab.url and "blue" in tab.title()
    expect(tiles(tab)).to_have_count(24)
    assert tiles(tab).first.locator("img").get_attribute("loading") == "lazy"
    score = tiles(tab).first.locator(".score")
    expect(score).to_have_text(re.compile("^[0-9][.][0-9] \N{GREEK SMALL LETTER SIGMA}$"))
    expect(score).to_have_attribute("title", re.compile(r"inner product [\d.]+"))

    boxes = [box.bounding_box() for box in tab.locator(".tile .frame").all()]
    rows = {}
    for box in boxes:
        rows.setdefault(round(box["y"]), []).append(box)
    assert len(rows) >= 3
    for row in rows.values():
        assert max(box["height"] for box in row) - min(box["height"] for box in row) < 1
    for row in list(rows.values())[:-1]:
        assert row[-1]["x"] + row[-1]["width"] == pytest.approx(1280 - 32, abs=1)
    shoot(tab, "results")


def test_more_adds_to_what_is_there(tabs):
    tab = tabs("/?text=green")
    expect(tiles(tab)).to_have_count(24)
    tab.get_by_role("button", name="More", exact=True).click()
    expect(tiles(tab)).to_have_count(PICTURES)
    expect(tiles(tab).nth(24)).to_be_focused()
    expect(tab.get_by_role("button", name="More", exact=True)).to_have_count(0)


def test_finds_by_a_picture(tabs):
    tab = tabs()
    for way, colour in (("drop", "yellow"), ("paste", "green"), ("choose", "blue")):
        expect(tab.get_by_text("Show it")).to_be_visible()
        if way == "choose":
            file = {"name": "mine.png", "mimeType": "image/png", "buffer": drawn(colour)}
            tab.locator("#file").set_input_files([file])
        else:
            hand_over(tab, way, drawn(colour))
        first(tab, colour)
        expect(tab.locator(".chip.upload canvas")).to_be_visible()
        tab.get_by_role("button", name="Remove mine.png").click()


def test_weighs_words_and_a_picture(tabs):
    tab = tabs("/?text=red")
    first(tab, "red")
    hand_over(tab, "dragenter", drawn("blue"))
    expect(tab.locator("#drop")).to_be_visible()
    hand_over(tab, "drop", drawn("blue"))
    expect(tab.locator("#drop")).to_be_hidden()
    words, picture = tab.get_by_label("Weight of red"), tab.get_by_label("Weight of mine.png")
    picture.fill("0.1")
    first(tab, "red")
    words.fill("0.1")
    picture.fill("2")
    first(tab, "blue")
    expect(picture).to_be_focused()
    shoot(tab, "words-and-picture")


def test_leaves_out_what_is_unwanted(tabs):
    tab = tabs()
    search(tab, "red yellow")
    tab.get_by_role("button", name="Without", exact=True).click()
    expect(tab.get_by_label("Without", exact=True)).to_be_focused()
    tab.keyboard.type("yellow")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("button", name="Remove without yellow")).to_be_visible()
    tab.get_by_label("Weight of without yellow").fill("2")
    last = tab.locator("#results a[data-id^=yellow]")
    first(tab, "red|pink|blue")
    expect(last).to_have_count(0)
    assert "without=yellow" in tab.url


def test_opens_a_result_and_closes_it(tabs):
    tab = tabs("/?text=pink")
    tiles(tab).nth(1).click()
    dialog = tab.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(tab.locator("#item-name")).to_be_focused()
    expect(dialog).to_contain_text("pinkcam")
    expect(dialog).to_contain_text("a pink picture, number")
    expect(dialog).to_contain_text("Standard score")
    picture = dialog.get_by_role("img", name="a pink thing")
    expect(picture).to_be_visible()
    expect(picture).not_to_have_js_property("naturalWidth", 0)
    assert "show=pink" in tab.url
    shoot(tab, "opened")
    tab.keyboard.press("ArrowRight")
    third = tiles(tab).nth(2)
    expect(dialog).to_contain_text(third.get_attribute("data-id"))
    tab.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(third).to_be_focused()
    assert "show" not in tab.url


def test_a_link_opens_a_result(tabs):
    tab = tabs("/?text=pink&show=red-3.png")
    dialog = tab.get_by_role("dialog")
    expect(dialog).to_contain_text("redcam")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    assert "show" not in tab.url
    first(tab, "pink")


def test_finds_more_like_one(tabs):
    tab = tabs("/?text=green")
    tiles(tab).first.click()
    tab.get_by_role("dialog").get_by_role("button", name="More like this").click()
    expect(tab.get_by_role("dialog")).to_be_hidden()
    expect(tab.locator(".chip.like")).to_be_visible()
    expect(tab.get_by_role("searchbox")).to_have_value("")
    assert "like=green" in tab.url
    first(tab, "green")
    tab.go_back()
    expect(tab.get_by_role("searchbox")).to_have_value("green")


def test_the_address_remembers(tabs):
    tab = tabs()
    search(tab, "red")
    first(tab, "red")
    hand_over(tab, "drop", drawn("blue"))
    expect(tab.locator(".chip.upload")).to_be_visible()
    search(tab, "green")
    first(tab, "green|blue")
    tab.go_back()
    expect(tab.get_by_role("searchbox")).to_have_value("red")
    expect(tab.locator(".chip.upload")).to_be_visible()
    tab.go_back()
    expect(tab.locator(".chip.upload")).to_have_count(0)
    first(tab, "red")
    tab.go_back()
    expect(tab.get_by_text("Say it")).to_be_visible()
    tab.go_forward()
    tab.go_forward()
    expect(tab.locator(".chip.upload")).to_be_visible()
    expect(tab.locator("#notice")).to_be_hidden()
    tab.reload()
    expect(tab.locator("#notice")).to_contain_text("The picture that you gave is no longer part of the search")
    search(tab, "pink")
    first(tab, "pink")
    expect(tab.locator("#notice")).to_be_hidden()
    tab.goto("/?text=red&without=pink&weights=1.5,0.7&where=year+%3E%3D+2003&target=text&k=5")
    expect(tab.get_by_label("Weight of without pink")).to_have_value("0.7")
    expect(tab.get_by_label("Weight of red")).to_have_value("1.5")
    expect(tab.get_by_role("radio", name="Captions")).to_be_checked()
    expect(tiles(tab)).to_have_count(5)


def test_filters(tabs):
    tab = tabs("/?text=red")
    first(tab, "red")
    tab.get_by_role("button", name="Filter", exact=True).click()

    def add(field, comparison, value):
        tab.get_by_label("Only where").select_option(field)
        tab.get_by_label("Comparison").select_option(comparison)
        box = tab.get_by_label("Value", exact=True)
        if field == "kept":
            box.select_option(value)
        else:
            box.fill(value)
        tab.locator("#filter").get_by_role("button", name="Add").click()

    add("camera", "contains", "BLUE")
    first(tab, "blue")
    expect(tiles(tab)).to_have_count(7)
    add("year", ">=", "2003")
    expect(tiles(tab)).to_have_count(4)
    add("kept", "=", "true")
    expect(tiles(tab)).to_have_count(2)
    expect(tab.get_by_role("status")).to_contain_text("2 pictures")
    shoot(tab, "filters")
    add("year", "<", "1990")
    expect(tab.get_by_text("Nothing in the index satisfies these filters.")).to_be_visible()
    tab.get_by_role("button", name="Remove year < 1990").click()
    expect(tiles(tab)).to_have_count(2)


def test_finds_captions(tabs):
    tab = tabs("/?text=yellow")
    first(tab, "yellow")
    tab.get_by_role("radio", name="Captions").check()
    expect(tiles(tab).first).to_contain_text("yellow")
    expect(tab.get_by_role("status")).to_contain_text(f"{2 * PICTURES} captions")
    tiles(tab).first.click()
    expect(tab.get_by_role("dialog")).to_contain_text("yellowcam")


def test_markup_in_a_caption_stays_text(tabs):
    tab = tabs("/?text=red&show=red-0.png&k=40")
    expect(tab.locator("#item-name")).to_have_text(MARKUP)
    tab.keyboard.press("Escape")
    expect(tab.locator("a[data-id='red-0.png'] .caption")).to_have_text(MARKUP)
    expect(tab.locator("a[data-id='red-0.png'] img")).to_have_attribute("alt", MARKUP)
    tab.goto("/?target=text&k=40&without=x&text=" + "%3Cimg%20src%3Dx%3E%20red")
    expect(tab.locator(".chip.text")).to_contain_text("<img src=x> red")
    assert tab.locator("img[src=x]").count() == 0 and tab.title() != "run"


def test_keyboard_alone(tabs):
    tab = tabs("/?text=blue")
    first(tab, "blue")
    tab.locator("body").click(position={"x": 2, "y": 2})
    press = tab.keyboard.press
    press("/")
    expect(tab.get_by_role("searchbox")).to_be_focused()
    tab.keyboard.type("pink")
    press("Enter")
    first(tab, "pink")
    press("ArrowDown")
    expect(tiles(tab).nth(0)).to_be_focused()
    press("ArrowRight")
    expect(tiles(tab).nth(1)).to_be_focused()
    press("ArrowDown")
    below = tab.evaluate("document.activeElement.getBoundingClientRect().top")
    assert below > tiles(tab).nth(1).bounding_box()["y"]
    press("ArrowUp")
    expect(tiles(tab).nth(1)).to_be_focused()
    press("End")
    expect(tiles(tab).last).to_be_focused()
    press("Home")
    press("Enter")
    expect(tab.get_by_role("dialog")).to_be_visible()
    press("Escape")
    expect(tiles(tab).first).to_be_focused()
    press("m")
    expect(tab.locator(".chip.like")).to_be_visible()
    expect(tiles(tab).first).to_be_focused()
    # One stop of the Tab key for the whole grid, and the skip link first of all.
    assert tab.locator("#results a[tabindex='0']").count() == 1
    tab.goto("/?text=pink")
    first(tab, "pink")
    tab.get_by_role("link", name="Skip to the results").focus()
    press("Enter")
    expect(tab.locator("#results")).to_be_focused()


def test_says_what_is_wrong_in_the_services_words(tabs):
    tab = tabs("/?text=red&where=colour+%3D+red")
    expect(tab.get_by_role("alert")).to_contain_text("the index has no field 'colour'")
    shoot(tab, "error")
    tab.get_by_role("button", name="Remove colour = red").click()
    first(tab, "red")
    expect(tab.get_by_role("alert")).to_have_count(0)
    hand_over(tab, "drop", drawn("blue"))
    first(tab, "blue|red")
    hand_over(tab, "drop", drawn("blue")[:200], name="cut-off.png")
    expect(tab.get_by_role("alert")).to_contain_text("the file cut-off.png can't be decoded")
    expect(tab.get_by_role("button", name="Try again")).to_have_count(0)
    assert len(tabs.problems) == 2 and all("422" in problem for problem in tabs.problems)
    tabs.problems.clear()


def test_something_like_what_is_not_there(tabs):
    tab = tabs("/?like=gone.png")
    expect(tab.get_by_role("alert")).to_contain_text("gone.png")
    expect(tab.get_by_role("button", name="Try again")).to_have_count(0)
    expect(tab.locator(".chip.like")).to_be_visible()
    expect(tab.locator(".chip.like img")).to_be_hidden()
    assert len(tabs.problems) == 2 and all("404" in problem or "422" in problem for problem in tabs.problems)
    tabs.problems.clear()


def test_a_busy_service_is_asked_again(tabs):
    tab = tabs("/")
    said = {"error": {"kind": "busy", "message": "64 searches are under way already."}}
    refuse = {"status": 503, "headers": {"Retry-After": "1"}, "json": said}
    tab.route("**/v1/search", lambda route: route.fulfill(**refuse), times=1)
    search(tab, "green")
    expect(tab.get_by_role("alert")).to_contain_text("64 searches are under way already.")
    expect(tab.get_by_text("Trying again in 1 s")).to_be_visible()
    first(tab, "green")
    expect(tab.get_by_role("alert")).to_have_count(0)
    assert len(tabs.problems) == 1 and "503" in tabs.problems[0]
    tabs.problems.clear()


def test_a_service_that_is_gone_can_be_tried_again(tabs):
    tab = tabs(before=lambda tab: tab.route("**/v1/index", lambda route: route.abort(), times=1))
    expect(tab.get_by_role("alert")).to_contain_text("can't be reached")
    tab.get_by_role("searchbox").fill("blue")
    tab.get_by_role("button", name="Try again").click()
    expect(tab.get_by_text("Say it")).to_be_visible()
    expect(tab.get_by_role("searchbox")).to_have_value("blue")
    assert len(tabs.problems) == 1 and "ERR_FAILED" in tabs.problems[0]
    tabs.problems.clear()


def test_asks_for_the_key(tabs, index, tmp_path):
    (tmp_path / "key").write_text("open sesame".replace(" ", "-"))
    with served(index, ServeConfig(api_key_file=tmp_path / "key")) as address:
        tab = tabs("/?text=blue", base_url=address)
        field = tab.get_by_label("API key")
        expect(field).to_be_focused()
        field.fill("wrong")
        tab.keyboard.press("Enter")
        expect(tab.get_by_role("alert")).to_contain_text("API key is missing or wrong")
        field.fill("open-sesame")
        tab.keyboard.press("Enter")
        first(tab, "blue")
        drawn_by_key = tiles(tab).first.locator("canvas")
        expect(drawn_by_key).to_have_attribute("aria-label", "a blue thing")
        # An empty canvas is 300 pixels wide.
        expect(drawn_by_key).not_to_have_js_property("width", 300)
        assert tab.evaluate("Object.keys(localStorage).length") == 0 and "sesame" not in tab.url
        tab.reload()
        first(tab, "blue")
        tiles(tab).first.click()
        with tab.expect_popup() as opened:
            tab.get_by_role("link", name="Original").click()
        expect(opened.value.locator("img")).not_to_have_js_property("naturalWidth", 0)
        tab.context.close()
    assert len(tabs.problems) == 2 and all("401" in problem for problem in tabs.problems)
    tabs.problems.clear()


def test_grey_places_while_it_waits(tabs):
    waiting = []

    def hold(tab):
        tab.route("**/v1/search", lambda route: waiting.append(route), times=1)

    tab = tabs("/?text=red", before=hold, reduced_motion="reduce")
    frame = tab.locator(".skeletons .frame").first
    expect(frame).to_be_visible()
    assert frame.evaluate("each => getComputedStyle(each).animationName") == "none"
    expect(tab.locator("#results")).to_have_attribute("aria-busy", "true")
    waiting[0].continue_()
    first(tab, "red")
    expect(tab.locator("#results")).not_to_have_attribute("aria-busy", "true")
    expect(frame).to_have_count(0)


def as_alloy(tab, asked):
    """Makes the service answer as if its encoder were an alloy of two, with a second stage; keeps what is asked."""

    def tell(route):
        facts = route.fetch().json() | {"inputs": INPUTS, "rerankers": ["local"], "words": True}
        route.fulfill(json=facts)

    def answer(route):
        question = route.request.post_data_json
        asked.append(question)
        plain = question | {"by": None, "rerank": None, "explain": False}
        found = route.fetch(post_data=json.dumps(plain)).json()
        if question.get("by") == INPUTS[1]:
            found["hits"].reverse()
        for place, hit in enumerate(found["hits"]):
            if question["explain"]:
                hit |= {
                    "contributions": dict(zip(INPUTS, (0.5, -0.25), strict=True)),
                    "part_contributions": [0.4, -0.15],
                }
            # It looks at no more than the best few.
            if question.get("rerank") and place < RERANKED:
                hit["rerank_score"] = 0.875
        route.fulfill(json=found)

    def find(route):
        bright = [[float(row == 2 and column == 0) for column in range(3)] for row in range(3)]
        told = (("a", 0.9, False), ("red", 0.3, True), ("thing", 0.2, True))
        words = [{"word": word, "score": score, "seen": seen, "weights": bright} for word, score, seen in told]
        route.fulfill(json={"rows": 3, "columns": 3, "words": words, "encoder": INPUTS[0]})

    tab.route("**/v1/index", tell)
    tab.route("**/v1/search", answer)
    tab.route("**/v1/words", find)


def test_inputs_beside_the_alloy(tabs):
    asked = []
    tab = tabs("/?text=red&side=1&k=5", before=lambda tab: as_alloy(tab, asked), color_scheme="light")
    columns = tab.locator(".side")
    expect(columns.locator("h2")).to_have_text(["The alloy", *INPUTS])
    expect(columns.nth(2).locator("a")).to_have_count(8)
    assert sorted(question.get("by", "") for question in asked) == ["", *INPUTS]
    expect(columns.nth(1).locator(".place").first).to_have_text("alloy: 1")
    expect(columns.nth(2).locator(".place").first).to_have_text("alloy: below 5")
    # What one encoder finds first, the others may show, too: the same picture is outlined.
    columns.nth(0).locator("a").first.focus()
    expect(columns.nth(1).locator("a").first).to_have_class(re.compile("same"))
    shoot(tab, "side-by-side")
    tab.get_by_role("button", name="Side by side").click()
    expect(tab.locator(".tile")).to_have_count(24)


def test_says_why_and_where(tabs):
    asked = []
    tab = tabs("/?text=red&without=pink", before=lambda tab: as_alloy(tab, asked), color_scheme="light")
    tab.get_by_role("button", name="Re-rank").click()
    expect(tab.get_by_role("button", name="Re-rank")).to_have_attribute("aria-pressed", "true")
    scores = tab.locator("#results .score")
    told = re.compile(r"^re-ranked 0\.875; at first [-\d.]+ standard deviations .*; inner product [-\d.]+$")
    expect(scores.first).to_have_attribute("title", told)
    expect(scores.nth(RERANKED - 1)).to_have_text("0.875")
    expect(scores.nth(RERANKED)).to_have_text(re.compile("\N{GREEK SMALL LETTER SIGMA}$"))
    expect(tiles(tab).first).to_have_attribute("aria-label", re.compile("score 0.875$"))
    assert [question.get("rerank") for question in asked] == [None, "local"]
    assert asked[0]["parts"] == [{"text": "red", "weight": 1}, {"text": "pink", "weight": -0.5}]
    tab.locator("a[data-id='red-3.png']").click()
    dialog = tab.get_by_role("dialog")
    bars = dialog.locator(".bars").first
    expect(bars.locator("li")).to_have_text([f"{INPUTS[0]}0.50", f"{INPUTS[1]}-0.25"])
    track, (adds, takes) = (
        bars.locator(".track").first.bounding_box(),
        [bar.bounding_box() for bar in bars.locator(".bar").all()],
    )
    assert adds["width"] == pytest.approx(2 * takes["width"], abs=1)
    assert takes["x"] == pytest.approx(track["x"], abs=1) and adds["x"] == pytest.approx(
        takes["x"] + takes["width"], abs=1
    )
    expect(dialog.locator(".bars").nth(1).locator(".name")).to_have_text(["red", "without pink"])

    dialog.get_by_role("button", name="Look").click()
    expect(dialog.get_by_role("button", name="red", exact=True)).to_have_attribute("aria-pressed", "true")
    # The grid lies over the middle square of the picture, which is 240 x 100; its lower left cell is the bright one.
    said = dialog.get_by_role("status")
    expect(said).to_have_text(f"For “red” the encoder {INPUTS[0]} looks at the bottom (score 0.30).")
    bright, other, outside = dialog.locator(".overlay").evaluate(
        """(overlay) => {
            const { width, height } = overlay;
            const { data } = overlay.getContext("2d").getImageData(0, 0, width, height);
            const at = (x, y) => data[4 * (Math.floor(y * height) * width + Math.floor(x * width)) + 3];
            return [at(0.31, 0.95), at(0.69, 0.05), at(0.1, 0.9)];
        }"""
    )
    assert bright < 20 and other > 190 and outside > 190
    shoot(tab, "attention")
    dialog.get_by_role("button", name="red", exact=True).click()
    expect(dialog.locator(".overlay")).to_be_hidden()
    expect(dialog.locator(".word.unseen")).to_have_text(["a"])
    dialog.get_by_role("button", name="a", exact=True).click()
    expect(said).to_contain_text("(score 0.90), but a picture can hardly show it.")
    expect(dialog.locator(".overlay")).to_be_visible()


def test_pressed_tools_look_alike(tabs):
    tab = tabs("/?text=red", before=lambda tab: as_alloy(tab, []), color_scheme="light")
    look = "each => [getComputedStyle(each).color, getComputedStyle(each).backgroundColor]"
    looks = []
    for name in ("Without", "Filter", "Side by side", "Re-rank"):
        tool = tab.get_by_role("button", name=name, exact=True)
        loose = tool.evaluate(look)
        tool.click()
        below_pointer = tool.evaluate(look)
        tab.mouse.move(0, 0)
        looks += [below_pointer, tool.evaluate(look)]
        assert loose not in looks
    assert all(each == looks[0] for each in looks)


def settle(tab):
    """Waits until all that an address says is shown."""
    expect(tab.locator("#results > *").first).to_be_visible()
    expect(tab.locator("[aria-busy=true]")).to_have_count(0)
    if "show=" in tab.url:
        expect(tab.locator(".more-facts dl")).to_be_visible()


TOO_FAINT = """() => {
    const numbers = (colour) => {
        const found = colour.match(/[\\d.]+/g).map(Number);
        const scale = colour.startsWith("color") ? 255 : 1;
        return [...found.slice(0, 3).map((part) => scale * part), found[3] ?? 1];
    };
    const luminance = (colour) => {
        const [red, green, blue] = numbers(colour).map((part) => {
            const share = part / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const behind = (each) => {
        for (let place = each; place; place = place.parentElement) {
            const colour = getComputedStyle(place).backgroundColor;
            if (numbers(colour)[3] === 1) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const within = document.querySelector("dialog[open]") ?? document.body;
    const spoken = [...within.querySelectorAll("*")].filter((each) =>
        each.checkVisibility() && !each.matches(":disabled") && !each.closest(".hidden") &&
        [...each.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim()));
    const seen = spoken.map((each) => {
        const [one, other] = [luminance(getComputedStyle(each).color), luminance(behind(each))].sort((a, b) => b - a);
        return [each.className || each.tagName, each.textContent.slice(0, 20), (one + 0.05) / (other + 0.05)];
    });
    return [seen.length, seen.filter(([, , ratio]) => ratio < 4.5)];
}"""


@pytest.mark.slow
def test_contrast_is_enough(tabs):
    # Without motion, since colours would be on their way when they are looked at.
    tab = tabs("/", before=lambda tab: as_alloy(tab, []), reduced_motion="reduce")
    paths = {
        "start": "/",
        "side": "/?text=red&without=pink&side=1&rerank=local",
        "captions": "/?text=red&target=text",
        "opened": "/?text=red&show=red-1.png",
    }
    for name, path in paths.items():
        tab.goto(path)
        settle(tab)
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            background = tab.locator("body").evaluate("each => getComputedStyle(each).backgroundColor")
            assert (int(re.findall(r"\d+", background)[0]) < 60) == (scheme == "dark")
            shoot(tab, f"{scheme}-{name}")
            looked_at, too_faint = tab.evaluate(TOO_FAINT)
            assert looked_at > 10 and too_faint == []


def test_tools_share_a_row_on_a_phone(tabs):
    wishes = PHONE | {"viewport": {"width": 390, "height": 844}}
    tab = tabs("/", before=lambda tab: as_alloy(tab, []), **wishes)
    expect(tab.locator(".tool")).to_have_text(["Without", "Filter", "Side by side", "Re-rank"])
    box = "all => all.map((each) => each.getBoundingClientRect()).map(({ top, left, right }) => [top, left, right])"
    (row,) = tab.locator(".choice").evaluate_all(box)
    buttons = tab.locator(".tool").evaluate_all(box)
    # Each as far to the left and to the right as what stands above it, in the order of the Tab key.
    assert len({top for top, _, _ in buttons}) == 1 and buttons == sorted(buttons) and row[0] < buttons[0][0]
    assert [buttons[0][1], buttons[-1][2]] == pytest.approx(row[1:], abs=1)


@pytest.mark.slow
def test_fits_a_phone(tabs):
    tab = tabs("/", before=lambda tab: as_alloy(tab, []), **PHONE)
    width = "document.documentElement.scrollWidth"
    paths = {
        "start": "/",
        "results": "/?text=red&without=a+rather+long+thing+that+nobody+wants+to+see&where=year+%3E%3D+2001",
        "side": "/?text=red&side=1",
        "captions": "/?text=red&target=text",
        "opened": "/?text=red&show=red-0.png",
    }
    for name, path in paths.items():
        tab.goto(path)
        settle(tab)
        shoot(tab, f"phone-{name}")
        assert tab.evaluate(width) == 360
        small = "all => all.filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < 30).length"
        assert tab.locator("button, select, .tile, .choice label").evaluate_all(small) == 0
        if name == "results":
            heights = tab.locator(".tile .caption").evaluate_all("all => all.map((each) => each.clientHeight)")
            assert len(heights) == 24 and min(heights) > 10 and max(heights) < 25
            widths = tab.locator(".tile .caption").evaluate_all("all => all.map((each) => each.clientWidth)")
            assert min(widths) > 40
    dialog = tab.get_by_role("dialog")
    assert dialog.bounding_box()["width"] == 360 and dialog.evaluate("each => each.scrollWidth") == 360
    dialog.get_by_role("button", name="Close").tap()
    expect(dialog).to_be_hidden()
    for name in ("Filter", "Without"):
        tab.get_by_role("button", name=name, exact=True).tap()
    assert tab.evaluate(width) == 360
