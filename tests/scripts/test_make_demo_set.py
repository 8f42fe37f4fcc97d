import doctest
import json
import struct
import sys
import zlib
from importlib import import_module
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
captions = import_module("demo_set.captions")
families = import_module("demo_set.families")
folder = import_module("demo_set.folder")
metadata = import_module("demo_set.metadata")
pictures = import_module("demo_set.pictures")
splits = import_module("demo_set.splits")
script = import_module("make_demo_set")

PUBLIC_DOMAIN = "http://web.resource.org/cc/PublicDomain"
WORDS = [
    "a",
    "the",
    "red",
    "green",
    "blue",
    "car",
    "tree",
    "house",
    "apple",
    "boat",
    "lamp",
    "bird",
    "fruit",
    "food",
    "lime",
    "sun",
    "moon",
    "is",
    "in",
    "on",
    "of",
]


def work(title="Red car", path="things/red_car_01", **others):
    values = {"description": "", "keywords": (), "author": "Ann Onym", "licence": PUBLIC_DOMAIN} | others
    return metadata.Work(path=path, title=title, **values)


def write_svg(path, title, licence=PUBLIC_DOMAIN, keywords=(), description="", author="Ann Onym", body=""):
    items = "".join(f"<rdf:li>{escape(keyword)}</rdf:li>" for keyword in keywords)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">
        <metadata><rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
        xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work>
        <dc:title>{escape(title)}</dc:title><dc:description>{escape(description)}</dc:description>
        <dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>
        <dc:creator><cc:Agent><dc:title>{escape(author)}</dc:title></cc:Agent></dc:creator>
        <cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata>{body}</svg>""",
        encoding="utf-8",
    )


def write_png(path, seed=None, size=(120, 90)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    if seed is not None:
        pen = ImageDraw.Draw(image)
        random = np.random.default_rng(seed)
        for left, top in random.integers(0, 70, (12, 2)).tolist():
            pen.rectangle((left, top, left + 18, top + 14), fill=(*random.integers(0, 200, 3).tolist(), 255))
    image.save(path)


def write_huge_png(path, width, height):
    """A PNG whose header promises far more pixels than it has."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + bytes(8)
    )


@pytest.fixture
def source(tmp_path):
    """A small library: good pictures, and one for each way of being left out."""
    root = tmp_path / "openclipart"

    def add(name, title, seed, **metadata_of):
        write_svg(root / "svg" / f"{name}.svg", title, **metadata_of)
        write_png(root / "png" / f"{name}.png", seed)

    for number, noun in enumerate(("car", "tree", "house", "apple", "boat", "lamp", "bird")):
        add(f"things/{noun}_01", f"Red {noun}", number, keywords=("food", noun, "HASH(0x1)"))
    add("things/car_02", "Red cars (2)", 20)
    add("things/near_car_01", "Sun in the moon", 0, description="See http://a.b. The sun is red")
    add("things/licensed_01", "Green boat", 30, licence="http://creativecommons.org/licenses/GPL/2.0/")
    add("things/untagged_01", "Green lamp", 31, licence="")
    add("things/blank_01", "Green sun", None)
    add("things/gatto_01", "Gatto rosso", 32)
    add("signs/flags/france_01", "Green moon", 33)
    add("things/missing_01", "Blue moon", 34)
    (root / "png" / "things" / "missing_01.png").unlink()
    add("things/huge_01", "Blue sun", 35)
    write_huge_png(root / "png" / "things" / "huge_01.png", 60_000, 60_000)
    (root / "svg" / "things" / "linked_01.svg").symlink_to("car_01.svg")
    (tmp_path / "words").write_text("\n".join(WORDS), encoding="utf-8")
    return root


def make(source, out, *options):
    words = source.parent / "words"
    sizes = ["--test", "2", "--val", "1", "--tune", "1"]
    return script.main(["--out", str(out), "--source", str(source), "--words", str(words), *sizes, *options])


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def bytes_of(out):
    return {file.relative_to(out): file.read_bytes() for file in out.rglob("*") if file.is_file()}


@pytest.mark.parametrize("module", [captions, families, folder, metadata, pictures, splits, script])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


def test_the_script_gives_the_same_bytes_twice_and_says_what_it_dropped(source, tmp_path, capsys):
    assert make(source, tmp_path / "first") == 0
    printed = capsys.readouterr().out
    assert make(source, tmp_path / "second") == 0
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")
    for reason, count in {
        "not tagged as public domain": 2,
        "more than 16 megapixels": 1,
        "blank picture": 1,
        "same picture as another entry": 1,
        "title isn't English": 1,
        "folder of a series": 1,
        "link to another entry": 1,
        "no PNG of this name": 1,
    }.items():
        assert any(line.split(None, 1)[0] == str(count) and reason in line for line in printed.splitlines()), reason


def test_what_the_script_writes_holds_together(source, tmp_path):
    make(source, tmp_path / "out")
    manifest = {item["id"]: item for item in lines_of(tmp_path / "out" / "manifest.jsonl")}
    assert manifest["red-car"]["family"] == manifest["red-cars"]["family"]
    assert manifest["red-car"]["split"] == manifest["red-cars"]["split"] == "train"
    assert sorted(item["split"] for item in manifest.values()).count("test") == 2
    assert manifest["red-boat"]["captions"] == ["Red boat", "food, boat"]
    authors = {item["id"]: item["author"] for item in lines_of(tmp_path / "out" / "provenance.jsonl")}
    assert authors == dict.fromkeys(manifest, "Ann Onym")


def test_another_seed_draws_other_splits_and_replaces_the_folder(source, tmp_path):
    out = tmp_path / "out"
    drawn = set()
    for seed in range(5):
        make(source, out, "--seed", str(seed))
        drawn.add(tuple(item["split"] for item in lines_of(out / "manifest.jsonl")))
    assert len(drawn) > 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".partial")] == []


def test_missing_packages_are_named(tmp_path, capsys):
    assert script.main(["--out", str(tmp_path / "out"), "--source", str(tmp_path)]) == 2
    assert "apt-get install openclipart-png openclipart-svg" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_metadata_is_read(tmp_path):
    write_svg(tmp_path / "a" / "b.svg", "Tom & co", keywords=("x", ""), body='<image xlink:href="c.png"/>')
    read = metadata.read_work(tmp_path / "a" / "b.svg", tmp_path)
    assert (read.path, read.title, read.keywords, read.author) == ("a/b", "Tom & co", ("x", ""), "Ann Onym")
    assert read.licence == PUBLIC_DOMAIN and read.links_picture


def test_an_embedded_picture_is_no_link(tmp_path):
    write_svg(tmp_path / "b.svg", "x", body='<image xlink:href="data:image/png;base64,AA"/>')
    assert not metadata.read_work(tmp_path / "b.svg", tmp_path).links_picture


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'<!DOCTYPE svg [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>', "entities"),
        ('<!DOCTYPE svg [<!ENTITY a "aa">]><svg>&a;</svg>'.encode("utf-16"), "entities"),
        (b"<svg>", "well-formed"),
        (b"", "well-formed"),
        (b"<svg/>", "no metadata"),
    ],
)
def test_unsafe_or_broken_svg_is_refused(tmp_path, data, reason):
    (tmp_path / "a.svg").write_bytes(data)
    with pytest.raises(metadata.MetadataError, match=reason):
        metadata.read_work(tmp_path / "a.svg", tmp_path)


@pytest.mark.parametrize(
    ("title", "clean"),
    [
        ("horse#1", "horse"),
        ("Flat_Cake_bw", "Flat Cake in black and white"),
        ("B_W_Tiger", "Tiger in black and white"),
        ("9mm gun", "9mm gun"),
        ("Microchip v.2", "Microchip"),
        ("Pink-Rose", "Pink Rose"),
        ("bear under stars | circle", "bear under stars"),
        ("Grampa&amp;#39;n Gramma", "Grampa'n Gramma"),
        ("Various Cliparts", ""),
        ("", ""),
    ],
)
def test_titles_are_cleaned(title, clean):
    assert captions.clean_title(title) == clean


@given(st.text(max_size=60))
def test_no_title_breaks_the_cleaning(title):
    clean = captions.clean_title(title)
    assert clean == " ".join(clean.split())
    captions.clean_description(title, set(WORDS))
    families.title_stem(title)


@pytest.mark.parametrize(
    ("title", "others", "problem"),
    [
        ("red car", {}, None),
        ("12", {}, "meaningless title"),
        ("Untitled drawing", {}, "meaningless title"),
        ("Ann Onym", {}, "title is the author's name"),
        ("red flag", {}, "map, flag, icon, logo or the like"),
        ("red car", {"keywords": ("map",)}, "map, flag, icon, logo or the like"),
        ("gatto rosso", {}, "title isn't English"),
        ("la car", {"author": "x"}, None),
        ("la car de red", {}, "title isn't English"),
        ("cár", {}, "title isn't English"),
        ("red car", {"keywords": ("sexy",)}, "unsuitable, or another's character"),
    ],
)
def test_titles_that_are_left_out(title, others, problem):
    assert captions.title_problem(title, work(title, **others), set(WORDS)) == problem


def test_a_series_title_gives_way_to_the_files_own_name():
    banana = work("Clipart by Ann Onym - pear", "food/banana")
    assert captions.is_series_title(banana, 5)
    assert not captions.is_series_title(work("Clipart by Ann Onym - pear", "food/pear"), 5)
    assert not captions.is_series_title(work("Crawfish", "food/animal"), 1)
    assert captions.individual_title(banana, {banana.title: 5}, set()) == "banana"


def test_an_author_of_another_language_is_found_by_all_his_titles():
    italian = [("Rossi", title) for title in ("gatto", "cane", "casa", "albero", "sun")]
    english = [("Smith", title) for title in ("red car", "green tree", "blue boat")]
    assert captions.foreign_authors(italian + english, set(WORDS)) == {"Rossi"}


def test_description_keeps_only_what_tells_of_the_picture():
    text = "The car is red. Made with Inkscape. See http://a.b or mail x@y.z."
    assert captions.clean_description(text, set(WORDS)) == "The car is red"
    assert captions.clean_description("jean@example.org", set(WORDS)) == ""
    assert captions.clean_description("gatto rosso in casa", set(WORDS)) == ""


def test_shared_keywords_are_told_apart_by_the_title():
    assert captions.keyword_phrase("Lime", ["citrus", "fruit"], shared=True) == "lime, citrus, fruit"
    assert captions.keyword_phrase("Lime", ["lime"]) == ""
    assert captions.keyword_phrase("Lime", []) == ""


def test_families_join_titles_and_likeness_through_one_another():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(5, 256))
    vectors[3] = vectors[1] + 0.01 * random.normal(size=256)
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = families.families_of(["Red car", "Blue car 2", "Tree", "Bus", "House"], vectors, 0.97)
    assert labels[0] == labels[1] == labels[3]
    assert len(set(labels)) == 3


def test_the_fingerprint_is_a_correlation(tmp_path):
    write_png(tmp_path / "a.png", 1)
    write_png(tmp_path / "b.png", 2)
    first, second = (pictures.canvas_of(tmp_path / name, 10**6, 10) for name in ("a.png", "b.png"))
    prints = [pictures.fingerprint_of(canvas) for canvas in (first, second)]
    boxes = [
        np.asarray(canvas.convert("L"), dtype=float).reshape(16, 14, 16, 14).mean(axis=(1, 3)).ravel()
        for canvas in (first, second)
    ]
    assert prints[0] @ prints[0] == pytest.approx(1)
    assert prints[0] @ prints[1] == pytest.approx(np.corrcoef(boxes)[0, 1], abs=0.01)


def test_the_canvas_is_white_outside_keeps_the_aspect_and_crops_empty_margins(tmp_path):
    image = Image.new("RGBA", (400, 300), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (100, 100, 200, 150))
    image.save(tmp_path / "a.png")
    canvas = pictures.canvas_of(tmp_path / "a.png", 10**6, 10)
    red = (np.asarray(canvas) == (255, 0, 0)).all(axis=-1)
    assert canvas.size == (224, 224) and canvas.getpixel((0, 0)) == (255, 255, 255)
    width, height = red.any(axis=0).sum(), red.any(axis=1).sum()
    assert width / height == pytest.approx(2, abs=0.05) and width > 200


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "I;16"])
def test_every_png_mode_is_drawn(tmp_path, mode):
    grey = np.full((80, 80), 255, dtype=np.uint8)
    grey[20:60, 30:50] = 0
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "a.png")
    canvas = pictures.canvas_of(tmp_path / "a.png", 10**6, 10)
    assert canvas.getpixel((112, 112)) == (0, 0, 0)
    assert canvas.getpixel((5, 112)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [((1000, 10), "more than 0.001 megapixels"), ((10**6, 500), "smaller than 500 pixels")],
)
def test_size_limits(tmp_path, limits, reason):
    write_png(tmp_path / "a.png", 1)
    with pytest.raises(pictures.PictureError, match=reason):
        pictures.canvas_of(tmp_path / "a.png", *limits)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a" + bytes(40), b"\x89PNG\r\n\x1a\n" + struct.pack(">IIII", 13, 0, 90, 90)]
)
def test_unreadable_pictures(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(pictures.PictureError, match="unreadable"):
        pictures.canvas_of(tmp_path / "a.png", 10**6, 10)


def test_a_uniform_colour_and_nothing_at_all_are_told_apart(tmp_path):
    Image.new("RGB", (90, 90), "white").save(tmp_path / "white.png")
    with pytest.raises(pictures.PictureError, match="blank"):
        pictures.canvas_of(tmp_path / "white.png", 10**6, 10)
    Image.new("RGB", (90, 90), "navy").save(tmp_path / "navy.png")
    assert pictures.canvas_of(tmp_path / "navy.png", 10**6, 10).getpixel((112, 112)) == (0, 0, 128)


def test_the_sign_of_a_missing_picture_is_seen():
    canvas = Image.new("RGB", (224, 224), "white")
    assert not pictures.shows_missing_picture(canvas)
    canvas.paste((255, 64, 64), (90, 90, 120, 120))
    assert pictures.shows_missing_picture(canvas)


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True)),
        max_size=30,
    ),
    st.integers(0, 3),
)
def test_splits_keep_their_promises(rows, seed):
    candidates = [splits.Candidate(f"p{row}", tuple(own), family) for row, (family, own) in enumerate(rows)]
    chosen = splits.assign_splits(candidates, {"test": 2, "val": 2}, seed, 3, 2)
    family_of = {candidate.path: candidate.family for candidate in candidates}
    titles = {candidate.path: candidate.captions[0] for candidate in candidates}
    owners: dict[int, set[str]] = {}
    for path, (split, _) in chosen.items():
        owners.setdefault(family_of[path], set()).add(split)
    assert all(len(own) == 1 for own in owners.values())
    for split in ("test", "val"):
        members = {path: own for path, (name, own) in chosen.items() if name == split}
        flat = [caption for own in members.values() for caption in own]
        assert len(members) <= 2 and len(flat) == len(set(flat))
        assert len({family_of[path] for path in members}) == len(members)
        assert all(own[0] == titles[path] for path, own in members.items())
