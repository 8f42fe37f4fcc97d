import os

from modalloy.data.doctor import LONG_CAPTION_WORDS, Problem, check_collection
from modalloy.data.manifest import SPLITS, Item, Manifest
from modalloy.files import sha256_of


def collection(root, picture, **changes) -> Manifest:
    """A sound collection of one picture a split, named after it, with some items' fields changed."""
    items = []
    for name in SPLITS:
        fields = {"path": f"{name}.png", "sha256": "", "split": name, "captions": (f"A {name} picture.",)}
        fields |= {"sha256": sha256_of(picture(f"{name}.png"))} | changes.get(name, {})
        items.append(Item(id=name, **fields))
    return Manifest(root, tuple(items))


def found(manifest) -> list[tuple[str, str | None, str]]:
    return [(problem.severity, problem.item, problem.message) for problem in check_collection(manifest)]


def test_a_sound_collection(tmp_path, picture):
    assert check_collection(collection(tmp_path, picture)) == []


def test_files(tmp_path, picture):
    manifest = collection(tmp_path, picture)
    (tmp_path / "train.png").unlink()
    (tmp_path / "val.png").write_bytes(b"other")
    problems = found(manifest)
    assert [(severity, item) for severity, item, _ in problems] == [("error", "train"), ("error", "val")]
    assert "is missing" in problems[0][2]
    assert "has changed" in problems[1][2]


def test_a_pipe_in_a_pictures_place_is_not_waited_for(tmp_path, picture):
    manifest = collection(tmp_path, picture)
    (tmp_path / "train.png").unlink()
    os.mkfifo(tmp_path / "train.png")
    assert found(manifest) == [
        ("error", "train", f"{tmp_path / 'train.png'} is a device or pipe, not a picture; give a file.")
    ]


def test_pictures_that_cannot_be_decoded(tmp_path, picture):
    picture("train.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "train.png").read_bytes()[:-30])
    half = {"path": "half.png", "sha256": sha256_of(tmp_path / "half.png")}
    ((severity, item, message),) = found(collection(tmp_path, picture, test=half))
    assert (severity, item) == ("error", "test")
    assert "half.png can't be decoded" in message


def test_many_pictures_are_checked_in_order_in_threads(tmp_path, picture, capsys, monkeypatch):
    monkeypatch.setattr("modalloy.data.doctor.BAR_FROM", 2)
    items = []
    for row in range(60):
        path = picture(f"{row}.png")
        items.append(Item(str(row), path.name, sha256_of(path), "train", (f"{row}.",)))
        if row % 7 == 0:
            path.unlink()
    errors = [problem for problem in check_collection(Manifest(tmp_path, tuple(items))) if problem.severity == "error"]
    assert [problem.item for problem in errors] == [str(row) for row in range(0, 60, 7)]
    assert "checking files" in capsys.readouterr().err


def test_only_some_of_many_are_named(tmp_path, picture):
    digest = sha256_of(picture("a.png"))
    items = tuple(Item(str(row), "a.png", digest, "test", ("A.",)) for row in range(9))
    messages = [message for _, item, message in found(Manifest(tmp_path, items)) if item == "0"]
    assert len(messages) == 2 and all("1, 2, 3, 4, 5 and 3 more" in message for message in messages)


def test_the_same_picture_in_two_splits(tmp_path, picture):
    manifest = collection(tmp_path, picture)
    copy = {"path": "train.png", "sha256": manifest[0].sha256}
    items = (manifest[0], Item("copy", split="test", captions=("A copy.",), **copy), *manifest[1:])
    assert found(Manifest(tmp_path, items)) == [
        ("error", "train", "the same picture is in another split too (copy); remove one")
    ]
    items = (manifest[0], Item("copy", split="train", captions=("A copy.",), **copy), *manifest[1:])
    assert found(Manifest(tmp_path, items)) == [
        ("warning", "train", "the same picture is there again (copy); join their captions")
    ]


def test_a_family_across_splits(tmp_path, picture):
    manifest = collection(tmp_path, picture, train={"family": "f"}, val={"family": "f"}, test={"family": "g"})
    assert found(manifest) == [("error", "train", "its family 'f' is in the splits train, val; keep it in one")]


def test_splits_without_captions(tmp_path, picture):
    manifest = collection(tmp_path, picture, val={"captions": ()})
    assert found(manifest) == [
        ("warning", None, "the val split has no captioned image, so there is nothing to choose on"),
        ("warning", "val", "the image has no caption; it can only be indexed"),
    ]
    missing = [message for _, _, message in found(manifest.split("tune"))]
    assert [message.split()[1] for message in missing] == ["train", "val", "test"]


def test_a_collection_without_any_caption_is_told_of_once(tmp_path, picture):
    bare = {name: {"captions": ()} for name in SPLITS}
    assert found(collection(tmp_path, picture, **bare)) == [
        ("warning", None, "no image has a caption; the collection can only be indexed")
    ]


def test_shared_captions_matter_where_they_are_evaluated(tmp_path, picture):
    manifest = collection(tmp_path, picture, train={"captions": ("A test picture.",)})
    more = Item("more", "more.png", sha256_of(picture("more.png")), "test", ("A test picture.", "Another."))
    ((severity, item, message),) = found(Manifest(tmp_path, (*manifest, more)))
    assert (severity, item) == ("warning", "test")
    assert "also that of more in test" in message


def test_a_caption_twice_on_one_image_is_not_shared(tmp_path, picture):
    assert found(collection(tmp_path, picture, test={"captions": ("A.", "A.")})) == []


def test_long_captions(tmp_path, picture):
    captions = ("word " * LONG_CAPTION_WORDS, "word " * (LONG_CAPTION_WORDS + 1))
    assert found(collection(tmp_path, picture, test={"captions": captions})) == [
        ("warning", "test", "caption 1 has 51 words; encoders may cut it after 50")
    ]


def test_errors_come_first(tmp_path, picture):
    manifest = collection(tmp_path, picture, train={"captions": ()})
    (tmp_path / "test.png").unlink()
    assert [severity for severity, _, _ in found(manifest)] == ["error", "warning", "warning"]


def test_printed_in_one_line():
    assert str(Problem("error", None, "no")) == "error: no"
