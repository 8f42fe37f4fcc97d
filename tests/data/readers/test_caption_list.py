import json
import re

import pytest

from modalloy.data.build import Record
from modalloy.data.readers import read_collection
from modalloy.data.readers.caption_list import is_caption_list, list_name, read_caption_lists
from modalloy.errors import DataError


def written(folder, name, rows):
    path = folder / name
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return path


def test_rows_are_grouped_by_image(tmp_path):
    train = [
        {"image": "x/a.jpg", "caption": "A.", "image_id": "coco_1"},
        {"image": "x/b.jpg", "caption": "B.", "image_id": 2},
        {"image": "./x/a.jpg", "caption": "C.", "image_id": "coco_1"},
    ]
    files = [
        written(tmp_path, "mine_train.json", train),
        written(
            tmp_path, "mine_val.json", [{"image": "c.jpg", "caption": ["D.", "E."]}, {"image": "d.jpg", "caption": []}]
        ),
        written(tmp_path, "mine_test.json", [{"image": "e.jpg", "caption": ["F."], "split": "tune"}]),
    ]
    collection = read_caption_lists(files)
    assert (collection.root, collection.expected) == (tmp_path, {})
    assert collection.records == (
        Record("x:a.jpg", "x/a.jpg", "train", ("A.", "C.")),
        Record("x:b.jpg", "x/b.jpg", "train", ("B.",)),
        Record("c.jpg", "c.jpg", "val", ("D.", "E.")),
        Record("d.jpg", "d.jpg", "val", ()),
        Record("e.jpg", "e.jpg", "tune", ("F.",)),
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("coco_karpathy_test.json", ("coco_karpathy", "test")),
        ("flickr30k_VAL.json", ("flickr30k", "val")),
        ("train.json", ("", "train")),
        ("captions.json", ("captions", None)),
        ("vg_caption.json", ("vg_caption", None)),
    ],
)
def test_names(tmp_path, name, expected):
    assert list_name(tmp_path / name) == expected


def test_split_of_a_file_whose_name_tells_none(tmp_path):
    file = written(tmp_path, "captions.json", [{"image": "a.jpg", "caption": "A."}])
    assert read_caption_lists([file], split="tune").records[0].split == "tune"


def test_image_folder(tmp_path, picture):
    file = written(tmp_path, "my_val.json", [{"image": "a.png", "caption": "A."}])
    (tmp_path / "elsewhere").mkdir()
    assert read_caption_lists([file]).root == tmp_path
    assert read_caption_lists([file], tmp_path / "elsewhere").root == tmp_path / "elsewhere"
    with pytest.raises(DataError, match=r"image folder .*nowhere isn't there"):
        read_caption_lists([file], tmp_path / "nowhere")
    picture("images/a.png")
    assert read_caption_lists([file]).root == tmp_path / "images"
    # As is usual, the paths themselves may start with the folder.
    file = written(tmp_path, "my_val.json", [{"image": "images/a.png", "caption": "A."}])
    assert read_caption_lists([file]).root == tmp_path


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("[", "not JSON"),
        ('{"annotations": []}', "should hold a list, got an object"),
        ('["a.jpg"]', 'row 1: it must be an object with "image" and "caption", got a text'),
        ('[{"caption": "A."}]', 'row 1: "image" must be a picture\'s path, got none'),
        ('[{"image": null, "caption": "A."}]', 'row 1: "image" must be a picture\'s path, got null'),
        ('[{"image": " ", "caption": "A."}]', 'row 1: "image" must be a picture\'s path, got a blank text'),
        ('[{"image": ["a.jpg"], "caption": "A."}]', "got a list"),
        ('[{"image": "b", "caption": "B."}, {"image": "a.jpg"}]', 'row 2: there is no "caption"'),
        ('[{"image": "a.jpg", "caption": null}]', "row 1: captions must be a text or a list of texts, got null"),
        ('[{"image": "a.jpg", "caption": 5}]', "list of texts, got a number"),
        ('[{"image": "a.jpg", "caption": ["A.", {}]}]', "list of texts, got a list with an object"),
        ('[{"image": "a.jpg", "caption": "A.", "split": 1}]', 'row 1: "split" must be a text, got a number'),
    ],
)
def test_bad_lists_are_named_with_their_row(tmp_path, rows, message):
    file = written(tmp_path, "mine_test.json", rows)
    with pytest.raises(DataError, match=re.escape(message)) as raised:
        read_caption_lists([file])
    assert str(raised.value).startswith(str(file))


def test_an_image_in_two_splits_is_an_error(tmp_path):
    rows = [{"image": "b.jpg", "caption": "B."}, {"image": "a.jpg", "caption": "A."}]
    files = [written(tmp_path, "mine_train.json", rows), written(tmp_path, "mine_test.json", rows[1:])]
    message = f"{files[1]}: row 1: a.jpg is in the split 'test', but in 'train' at {files[0]}: row 2"
    with pytest.raises(DataError, match=re.escape(message)):
        read_caption_lists(files)


def test_blank_or_odd_captions_and_missing_pictures_are_left_out_alone(tmp_path, picture):
    picture("a.png"), picture("b.png")
    rows = [{"image": f"{name}.png", "caption": ["good", "BAD"]} for name in ("a", "gone")]
    rows.append({"image": "b.png", "caption": [" ", "fine"]})
    (tmp_path / "mine_test.json").write_bytes(json.dumps(rows).encode().replace(b"BAD", b"caf\xe9"))
    manifest, rejects = read_collection(tmp_path / "mine_test.json")
    assert [(item.id, item.captions) for item in manifest] == [("a.png", ("good",)), ("b.png", ("fine",))]
    assert [reject.id for reject in rejects] == ["a.png", "gone.png", "gone.png", "b.png"]


@pytest.mark.parametrize(
    ("name", "images", "message"),
    [
        (
            "flickr30k_test",
            999,
            "flickr30k_*.json: the Karpathy test part of flickr30k has 1,000 images, this one has 999",
        ),
        ("flickr30k_val", 1000, "val part of flickr30k has 1,014 images, this one has 1,000"),
        ("flickr30k_train", 5, "train part of flickr30k has 29,000 images, this one has 5"),
        ("coco_karpathy_test", 1000, "test part of coco has 5,000 images, this one has 1,000"),
        ("coco_karpathy_train", 5, "train part of coco has 113,287 images (or 82,783, 30,504), this one has 5;"),
        ("coco_test", 1000, "test part of coco has 5,000 images, this one has 1,000"),
        ("coco_karpathy_val", 5, "if it is another split, rename the file."),
    ],
)
def test_benchmarks_of_another_size_are_errors(tmp_path, name, images, message):
    rows = [{"image": f"{row}.jpg", "caption": ["A."]} for row in range(images)]
    with pytest.raises(DataError, match=re.escape(message)):
        read_caption_lists([written(tmp_path, f"{name}.json", rows)])
    assert len(read_caption_lists([written(tmp_path, f"my_{name}.json", rows)]).records) == images


def test_the_published_test_part_is_expected_whole(tmp_path, picture):
    picture("0.png")
    rows = [{"image": f"{row}.png", "caption": ["A."]} for row in range(1000)]
    file = written(tmp_path, "flickr30k_test.json", rows)
    assert read_caption_lists([file]).expected == {"test": 1000}
    with pytest.raises(DataError, match=r"published test part has 1,000 images, but 1 can be used"):
        read_collection(file)


@pytest.mark.parametrize("given", ["", "mine_{train,test}.json"])
def test_a_folder_or_a_pattern_of_lists_is_one_collection(tmp_path, picture, given):
    picture("a.png"), picture("b.png")
    written(tmp_path, "mine_train.json", [{"image": "a.png", "caption": "A."}])
    written(tmp_path, "mine_test.json", [{"image": "b.png", "caption": ["B."]}])
    written(tmp_path, "vqa_test.json", {"not": "a list"})
    manifest, _ = read_collection(tmp_path / given)
    assert {item.id: item.split for item in manifest} == {"a.png": "train", "b.png": "test"}


def test_lists_that_cannot_be_read_together(tmp_path, picture):
    picture("a.png")
    for name in ("mine", "coco"):
        written(tmp_path, f"{name}_test.json", [{"image": "a.png", "caption": "A."}])
    with pytest.raises(DataError, match=re.escape("several collections (coco_{train,val,test}.json, mine_{")):
        read_collection(tmp_path)
    written(tmp_path, "other_test.json", {"images": []})
    with pytest.raises(DataError, match="only tars, or caption lists in JSON, can be read together"):
        read_collection(tmp_path / "{mine,other}_test.json")
    with pytest.raises(DataError, match="lists no images"):
        read_collection(written(tmp_path, "none_test.json", []))
    with pytest.raises(DataError, match="can't be read"):
        is_caption_list(tmp_path / "gone.json")
