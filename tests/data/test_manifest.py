import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalloy.data.item import SPLITS, Item
from modalloy.data.manifest import Manifest
from modalloy.errors import DataError
from modalloy.files import sha256_of

SHA = "0123456789abcdef" * 4


def item(id: str = "cat", **changes) -> Item:
    return Item(**{"id": id, "path": f"{id}.png", "sha256": SHA, "split": "train", "captions": ("A cat.",)} | changes)


# Everything that UTF-8 can say, line separators included.
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(str.strip)
IDS = st.text(
    st.characters(codec="utf-8", exclude_characters="#/\x7f", exclude_categories=["Cc"]),
    min_size=1,
    max_size=6,
).filter(str.strip)
# Fields, not items: the run-time type checker draws random numbers, which strategies mustn't.
FIELDS = st.fixed_dictionaries(
    dict(
        id=IDS,
        path=st.sampled_from(["a.png", "images/a b.png", "x/y/ü.jpg", "..a/b..png"]),
        sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
        split=st.sampled_from(SPLITS),
        captions=st.lists(TEXTS, max_size=4).map(tuple),
        family=st.none() | TEXTS,
    )
)
COLLECTIONS = st.lists(FIELDS, min_size=1, max_size=6, unique_by=lambda fields: fields["id"])


def items_of(collection) -> tuple[Item, ...]:
    return tuple(Item(**fields) for fields in collection)


@given(COLLECTIONS)
def test_save_and_load_give_the_same_manifest(tmp_path_factory, collection):
    items = items_of(collection)
    folder = tmp_path_factory.mktemp("manifest")
    manifest = Manifest(folder, items)
    manifest.save(folder / "manifest.jsonl")
    loaded = Manifest.load(folder / "manifest.jsonl")
    assert loaded == manifest
    assert loaded.fingerprint == manifest.fingerprint
    assert len((folder / "manifest.jsonl").read_bytes().splitlines()) == len(items)


@given(COLLECTIONS, st.sets(st.sampled_from(SPLITS), min_size=1))
def test_rows_agree_in_the_whole_and_in_its_splits(collection, names):
    items = items_of(collection)
    manifest = Manifest(Path("/pictures"), items)
    part = manifest.split(*names)
    assert part.image_ids == [item.id for item in items if item.split in names]
    for one in (manifest, part):
        assert len(one.captions) == len(one.caption_ids) == len(one.caption_image)
        assert len(one.image_ids) == len(one.families) == len(one)
        rows = zip(one.captions, one.caption_ids, one.caption_image.tolist(), strict=True)
        for caption, caption_id, row in rows:
            image_id, number = caption_id.rsplit("#", 1)
            assert one[row].id == image_id == one.image_ids[row]
            assert one[row].captions[int(number)] == caption
    counts = manifest.counts()
    assert sum(counts[name]["captions"] for name in names if name in counts) == len(part.captions)
    assert sum(count["images"] for count in counts.values()) == len(manifest)


@given(COLLECTIONS)
def test_families_are_equal_exactly_where_they_were_given_equal(collection):
    items = items_of(collection)
    families = Manifest(Path("/pictures"), items).families
    for row, first in enumerate(items):
        for column, second in enumerate(items):
            same = row == column or (first.family is not None and first.family == second.family)
            assert bool(families[row] == families[column]) == same


def test_a_family_named_like_an_id_is_not_that_item():
    manifest = Manifest(Path("/pictures"), (item("cat"), item("dog", family="cat")))
    assert manifest.families.tolist() == [0, 1]


def test_counts_leave_out_absent_splits():
    items = (item("a", captions=("1", "2")), item("b", split="test", captions=()))
    assert Manifest(Path("."), items).counts() == {
        "train": {"images": 1, "captions": 2},
        "test": {"images": 1, "captions": 0},
    }


def test_is_a_sequence():
    items = (item("a"), item("b"), item("c"))
    manifest = Manifest(Path("/pictures"), items)
    assert list(manifest) == list(items)
    assert manifest[-1] is items[-1]
    assert items[1] in manifest
    assert manifest[1:] == Manifest(Path("/pictures"), items[1:])
    assert manifest.absolute(items[0]) == Path("/pictures/a.png")


def test_a_collection_without_captions():
    manifest = Manifest(Path("."), (item("a", captions=()),))
    assert manifest.captions == []
    assert manifest.caption_image.shape == (0,)
    assert manifest.caption_image.dtype == torch.long


def test_fingerprint_tells_contents_but_not_place_or_split():
    base = Manifest(Path("/a"), (item("cat"),)).fingerprint
    assert Manifest(Path("/b"), (item("cat", split="test", path="other.png"),)).fingerprint == base
    for other in (item("dog"), item("cat", sha256="f" * 64), item("cat", captions=("A dog.",))):
        assert Manifest(Path("/a"), (other,)).fingerprint != base
    two = (item("a"), item("b"))
    assert Manifest(Path("/a"), two).fingerprint != Manifest(Path("/a"), two[::-1]).fingerprint


def test_duplicate_ids():
    with pytest.raises(DataError, match=re.escape("two items have the id 'cat' (cat.png and b.png)")):
        Manifest(Path("."), (item("cat"), item("cat", path="b.png")))


def test_unknown_split():
    with pytest.raises(DataError, match="no split 'dev'; choose among train, val, tune, test"):
        Manifest(Path("."), (item(),)).split("train", "dev")


def line(**changes) -> str:
    value = {"id": "cat", "path": "a.png", "sha256": SHA, "split": "val", "captions": ["A cat."]} | changes
    return json.dumps(value) + "\n"


def test_family_may_be_left_out(tmp_path):
    (tmp_path / "m.jsonl").write_text(line() + line(id="dog", family="pets"))
    assert [one.family for one in Manifest.load(tmp_path / "m.jsonl")] == [None, "pets"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{oops\n", "m.jsonl:2: not JSON"),
        (line(id="dog")[:-9], "m.jsonl:2: not JSON"),
        (b'{"id": "caf\xe9"}\n', "m.jsonl:2: not JSON in UTF-8"),
        ("[" * 100_000 + "\n", "m.jsonl:2: not JSON"),
        ("\n", "m.jsonl:2: not JSON"),
        ("[1, 2]\n", "m.jsonl:2: an item has the keys id, path, sha256"),
        ('{"id": "dog"}\n', "m.jsonl:2: an item has the keys id, path, sha256"),
        (line(id="dog", captoin="x"), "m.jsonl:2: an item has the keys"),
        (line(id="dog", captions="A dog."), "m.jsonl:2: item 'dog': captions must be a list"),
        (line(id="dog", captions=[3]), "m.jsonl:2: item 'dog': captions must be a list"),
        (line(id=7), "m.jsonl:2: item 7: id must be a text"),
        (line(id="dog", split=None), "m.jsonl:2: item 'dog': split must be a text"),
        (line(id="dog", family=[]), "m.jsonl:2: item 'dog': family must be a text"),
        (line(id="dog", captions=[" "]), "m.jsonl:2: item 'dog': caption 0 is blank"),
        (line(id="dog", captions=["\ud800"]), "m.jsonl:2: item 'dog': caption 0 isn't UTF-8"),
        (line(id="dog", path="../x.png"), "m.jsonl:2: the path '../x.png'"),
        (line(id="dog", split="dev"), "m.jsonl:2: item 'dog': split"),
        (line(), "m.jsonl: two items have the id 'cat'"),
    ],
)
def test_bad_line_is_named(tmp_path, second, message):
    second = second if isinstance(second, bytes) else second.encode()
    (tmp_path / "m.jsonl").write_bytes(line().encode() + second)
    with pytest.raises(DataError, match=re.escape(message)):
        Manifest.load(tmp_path / "m.jsonl")


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl can't be read \(No such file"):
        Manifest.load(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="can't be read"):
        Manifest.load(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="holds no items"):
        Manifest.load(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="without items"):
        Manifest(tmp_path, ()).save(tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()


def test_saved_elsewhere_still_finds_its_images(tmp_path, picture):
    path = picture("images/cat.png")
    manifest = Manifest(tmp_path / "images", (item(sha256=sha256_of(path)),))
    manifest.save(tmp_path / "runs" / "manifest.jsonl")
    loaded = Manifest.load(tmp_path / "runs" / "manifest.jsonl")
    assert loaded == manifest
    assert loaded.check_files() == []
    assert Manifest.load(tmp_path / "runs" / "manifest.jsonl", root=tmp_path).root == tmp_path


def test_a_manifest_beside_its_images_can_move(tmp_path, picture):
    path = picture("here/cat.png")
    Manifest(tmp_path / "here", (item(sha256=sha256_of(path)),)).save(tmp_path / "here" / "manifest.jsonl")
    (tmp_path / "here").rename(tmp_path / "there")
    assert Manifest.load(tmp_path / "there" / "manifest.jsonl").check_files() == []


def test_check_files(tmp_path, picture):
    same, changed = picture("same.png"), picture("changed.png")
    (tmp_path / "folder.png").mkdir()
    items = tuple(
        item(name, sha256=sha256_of(path))
        for name, path in (("same", same), ("changed", changed), ("gone", same), ("folder", same))
    )
    changed.write_bytes(b"other")
    problems = Manifest(tmp_path, items).check_files()
    assert len(problems) == 3
    assert re.match(r"changed: .*changed\.png has changed since", problems[0])
    assert re.match(r"gone: .*gone\.png is missing", problems[1])
    assert re.match(r"folder: .*folder\.png is a folder, not a picture", problems[2])
