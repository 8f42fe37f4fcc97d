import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import modalloy
from modalloy.files import sha256_of

FOLDER = Path(modalloy.__file__).parent / "data" / "demo_set"
HELD_OUT = ("val", "tune", "test")


def read_lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def manifest() -> list[dict]:
    return read_lines("manifest.jsonl")


def test_the_splits_have_their_sizes(manifest):
    counts = Counter(item["split"] for item in manifest)
    assert set(counts) == {"train", *HELD_OUT}
    assert 1000 <= counts.total() <= 1500
    assert counts["train"] >= 600
    assert (counts["val"], counts["tune"], counts["test"]) == (150, 150, 280)


def test_the_whole_folder_fits_in_ten_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 10_000_000


def test_every_picture_is_as_the_manifest_says(manifest):
    for item in manifest:
        path = FOLDER / item["path"]
        assert sha256_of(path) == item["sha256"], item["id"]
        with Image.open(path) as image:
            image.load()
            assert (image.size, image.mode) == ((224, 224), "RGB"), item["id"]


def test_no_picture_is_missing_from_the_manifest(manifest):
    assert {item["path"] for item in manifest} == {f"images/{file.name}" for file in (FOLDER / "images").iterdir()}


def test_ids_are_unique_readable_and_sorted(manifest):
    ids = [item["id"] for item in manifest]
    assert ids == sorted(set(ids))
    assert all(name.replace("-", "").isalnum() and name == name.lower() and name.isascii() for name in ids)


def test_no_family_crosses_splits_and_held_out_families_are_single(manifest):
    splits: dict[str, set[str]] = {}
    for item in manifest:
        splits.setdefault(item["family"], set()).add(item["split"])
    assert all(len(own) == 1 for own in splits.values())
    sizes = Counter(item["family"] for item in manifest if item["split"] in HELD_OUT)
    assert set(sizes.values()) == {1}


def test_captions_are_clean(manifest):
    for item in manifest:
        captions = item["captions"]
        assert 1 <= len(captions) <= 5
        assert len({caption.casefold() for caption in captions}) == len(captions), item["id"]
        for caption in captions:
            assert caption == caption.strip() and caption, item["id"]
            assert not any(junk in caption.lower() for junk in ("http", "www.", "@", "clipart", "clip art", "hash("))
    assert 2 <= sum(len(item["captions"]) for item in manifest) / len(manifest) <= 3


@pytest.mark.parametrize("split", HELD_OUT)
def test_held_out_captions_are_unique(manifest, split):
    captions = [c.casefold() for item in manifest if item["split"] == split for c in item["captions"]]
    assert len(captions) == len(set(captions))


def test_every_picture_has_an_author_and_is_in_the_public_domain(manifest):
    provenance = read_lines("provenance.jsonl")
    assert [item["id"] for item in provenance] == [item["id"] for item in manifest]
    for item in provenance:
        assert item["author"] and item["title"] is not None and item["original"].endswith(".png")
        assert "publicdomain" in item["licence"].lower()
        assert item["source"].startswith("openclipart-png ")


def test_the_folder_says_what_it_is():
    assert "public domain" in (FOLDER / "LICENSE.md").read_text(encoding="utf-8")
    assert "scripts/make_demo_set.py" in (FOLDER / "README.md").read_text(encoding="utf-8")
