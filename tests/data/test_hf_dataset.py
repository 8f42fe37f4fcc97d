import hashlib
import io
import json
import logging
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from modalloy.data.hf_dataset import _content, import_dataset
from modalloy.data.manifest import Manifest
from modalloy.data.readers import read_collection
from modalloy.errors import ConfigError, DataError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def encoded(colour: int = 0, format: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 3), (colour, 0, 0)).save(content, format)
    return content.getvalue()


def dataset(pictures, **columns) -> datasets.Dataset:
    cells = [None if content is None else {"bytes": content, "path": None} for content in pictures]
    return datasets.Dataset.from_dict({"image": cells, **columns}).cast_column("image", datasets.Image())


def saved(folder: Path, **parts) -> Path:
    datasets.DatasetDict(parts).save_to_disk(folder / "source")
    return folder / "source"


def found(manifest):
    return [(item.id, item.split, item.captions) for item in manifest]


def test_pictures_keep_their_bytes_and_splits_their_meaning(tmp_path):
    pictures = [encoded(1), encoded(2, "JPEG"), encoded(3, "WEBP")]
    source = saved(
        tmp_path,
        train=dataset(pictures[:2], captions=[["A.", "B."], ["C."]]),
        validation=dataset(pictures[2:], captions=[[]]),
    )
    manifest, rejects = import_dataset(source, tmp_path / "out")
    assert rejects == [] and manifest.root == tmp_path / "out"
    assert found(manifest) == [
        ("train-0000000", "train", ("A.", "B.")),
        ("train-0000001", "train", ("C.",)),
        ("validation-0000000", "val", ()),
    ]
    assert [Path(item.path).suffix for item in manifest] == [".png", ".jpg", ".webp"]
    assert [manifest.absolute(item).read_bytes() for item in manifest] == pictures
    assert Manifest.load(tmp_path / "out" / "manifest.jsonl") == manifest == read_collection(tmp_path / "out")[0]
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".partial")]


def test_parquet_files_and_image_folders(tmp_path, picture):
    (tmp_path / "parquet").mkdir()
    dataset([encoded(1)], text=["A."]).to_parquet(tmp_path / "parquet" / "test-00000-of-00001.parquet")
    manifest, _ = import_dataset(tmp_path / "parquet", tmp_path / "out")
    assert found(manifest) == [("test-0000000", "test", ("A.",))]
    path = picture("folder/a.png")
    (tmp_path / "folder" / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "A."}\n')
    manifest, _ = import_dataset(tmp_path / "folder", tmp_path / "more")
    assert found(manifest) == [("train-0000000", "train", ("A.",))]
    assert manifest[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_dataset_without_parts(tmp_path):
    dataset([encoded(1)], caption=["A."]).save_to_disk(tmp_path / "source")
    assert found(import_dataset(tmp_path / "source", tmp_path / "out")[0]) == [("train-0000000", "train", ("A.",))]


@pytest.mark.parametrize(
    ("columns", "captions"),
    [
        ({"caption": ["A."]}, ("A.",)),
        ({"text": ["A."], "label": [3]}, ("A.",)),
        ({"sentences": [[{"raw": "A.", "sentid": 1}, {"raw": "B.", "sentid": 2}]], "sentids": [[1, 2]]}, ("A.", "B.")),
        ({"sentences": [{"raw": ["A.", "B."]}]}, ("A.", "B.")),
        ({"caption_0": ["A."], "caption_1": ["B."], "caption_id": ["x"]}, ("A.", "B.")),
        ({"caption": ["A."], "captions": [["B."]]}, ("A.",)),
        ({"caption": [None], "n": [1]}, ()),
    ],
)
def test_captions_are_found(tmp_path, columns, captions):
    manifest, rejects = import_dataset(saved(tmp_path, test=dataset([encoded()], **columns)), tmp_path / "out")
    assert (manifest[0].captions, rejects) == (captions, [])


def test_named_columns(tmp_path):
    part = dataset(
        [encoded(1)], caption=["A."], other=["B."], third=[["C."]], mask=[{"bytes": encoded(2), "path": None}]
    )
    part = part.cast_column("mask", datasets.Image())
    source = saved(tmp_path, test=part)
    with pytest.raises(
        ConfigError, match=r"has 2 columns of pictures \(image, mask\) among its columns image, caption"
    ):
        import_dataset(source, tmp_path / "out")
    for caption, expected in (("other", ("B.",)), (["third", "caption"], ("C.", "A.")), ((), ())):
        manifest, _ = import_dataset(source, tmp_path / "out", image="mask", caption=caption)
        assert manifest[0].captions == expected


def test_a_column_of_splits_wins(tmp_path):
    part = dataset([encoded(1), encoded(2)], caption=["A.", "B."], split=["restval", "val"])
    assert [item.split for item in import_dataset(saved(tmp_path, test=part), tmp_path / "out")[0]] == ["train", "val"]


def test_rows_with_the_same_picture_make_one_item(tmp_path):
    source = saved(
        tmp_path,
        train=dataset([encoded(1), encoded(2), encoded(1)], caption=["A.", "B.", "C."]),
        test=dataset([encoded(1)], caption=["D."]),
    )
    assert found(import_dataset(source, tmp_path / "out")[0]) == [
        ("train-0000000", "train", ("A.", "C.")),
        ("train-0000001", "train", ("B.",)),
        ("test-0000000", "test", ("D.",)),
    ]


def test_an_interrupted_import_goes_on(tmp_path, monkeypatch):
    from modalloy.data import hf_dataset

    source = saved(tmp_path, test=dataset([encoded(n) for n in range(4)], caption=["A."] * 4))
    write, written = hf_dataset._write, []

    def stopped(folder, id, content):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write(folder, id, content))
        return written[-1]

    monkeypatch.setattr(hf_dataset, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(source, tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "out" / "images" / ".partial-1-x.png").touch()
    kept = [tmp_path / "out" / path for path in written]
    before = [path.stat().st_mtime_ns for path in kept]
    # A picture that isn't whole, or another of the same size, is written again.
    kept[1].write_bytes(encoded(9))
    manifest, _ = import_dataset(source, tmp_path / "out")
    assert [manifest.absolute(item).read_bytes() for item in manifest] == [encoded(n) for n in range(4)]
    assert kept[0].stat().st_mtime_ns == before[0]
    assert len(list((tmp_path / "out" / "images").iterdir())) == 4


def test_bad_rows_are_left_out_alone(tmp_path):
    pictures = [encoded(1), None, b"no picture", b"", encoded(2)[:20], encoded(3), encoded(4)]
    captions = [["A."], ["A."], ["A."], ["A."], ["A."], ["", "B."], [" "]]
    manifest, rejects = import_dataset(saved(tmp_path, test=dataset(pictures, captions=captions)), tmp_path / "out")
    taken = [("test-0000000", "test", ("A.",)), ("test-0000005", "test", ("B.",)), ("test-0000006", "test", ())]
    assert found(manifest) == taken
    reasons = [(reject.id[-1], reject.reason) for reject in rejects]
    assert [row for row, _ in reasons] == ["1", "2", "3", "4", "5", "6"]
    for (_, reason), expected in zip(
        reasons,
        [
            "no picture",
            "isn't in JPEG",
            "is empty",
            "can't be decoded",
            "caption 1 of 2 is blank",
            "caption 1 of 1 is blank",
        ],
        strict=True,
    ):
        assert expected in reason
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [reject.id for reject in rejects]


def test_a_picture_file_that_is_gone_is_left_out(tmp_path, picture, monkeypatch):
    for name in ("a.png", "b.png"):
        picture(f"source/{name}")
    rows = [{"file_name": f"{name}.png", "caption": f"{name}."} for name in "ab"]
    (tmp_path / "source" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    load = datasets.load_dataset

    def loaded(*arguments, **options):
        part = load(*arguments, **options)
        (tmp_path / "source" / "b.png").unlink()
        return part

    monkeypatch.setattr("datasets.load_dataset", loaded)
    manifest, (reject,) = import_dataset(tmp_path / "source", tmp_path / "out")
    assert found(manifest) == [("train-0000000", "train", ("a.",))]
    assert reject.id == "train-0000001" and "b.png can't be read (No such file" in reject.reason


def test_captions_that_are_no_texts(tmp_path):
    source = saved(tmp_path, test=dataset([encoded()], caption=[5]))
    with pytest.raises(DataError, match=r"none of 1 rows can be used; the first: its captions must be .* got a number"):
        import_dataset(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no column of captions that is known by its name; its columns are image, words: name one"),
        ({"image": "picture"}, "has no column 'picture'; it has image, words."),
        ({"image": "words"}, "the column 'words' doesn't hold pictures; those that do: image."),
        ({"caption": "text"}, "has no column 'text'; it has image, words."),
        ({"caption": ["words", "text"]}, "has no column 'text'; it has image, words."),
    ],
)
def test_wrong_columns_are_named_with_those_there_are(tmp_path, options, message):
    source = saved(tmp_path, test=dataset([encoded()], words=["A."]))
    with pytest.raises(ConfigError, match=re.escape(message)):
        import_dataset(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_part_with_other_columns_is_named(tmp_path):
    source = saved(tmp_path, train=dataset([encoded()], caption=["A."]), test=dataset([encoded(1)], text=["B."]))
    with pytest.raises(
        ConfigError, match="its part 'test' has no column 'caption', unlike its part 'train'; it has ima"
    ):
        import_dataset(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        ({"bytes": None, "path": None}, "the row has no picture"),
        ({"bytes": None, "path": "/dev/zero"}, "/dev/zero isn't a file"),
    ],
)
def test_a_cell_that_leads_to_no_picture(picture, reason):
    with pytest.raises(DataError, match=reason):
        _content(picture)


def test_no_column_of_pictures(tmp_path):
    source = saved(tmp_path, test=datasets.Dataset.from_dict({"caption": ["A."], "url": ["x"]}))
    with pytest.raises(ConfigError, match=r"has 0 columns of pictures \(none\) among its columns caption, url"):
        import_dataset(source, tmp_path / "out")


def test_unknown_splits_and_empty_datasets(tmp_path, monkeypatch):
    source = saved(tmp_path / "a", extra=dataset([encoded()], caption=["A."]))
    with pytest.raises(DataError, match="the split 'extra' is unknown; it should be one of train, val"):
        import_dataset(source, tmp_path / "out")
    empty = datasets.DatasetDict(test=dataset([], caption=[]))
    monkeypatch.setattr("datasets.load_from_disk", lambda source: empty)
    with pytest.raises(ConfigError, match="is empty: it has no rows"):
        import_dataset(source, tmp_path / "more")


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    source = saved(tmp_path, test=dataset([encoded()], caption=["A."]))
    import_dataset(source, tmp_path / "out")
    other = saved(tmp_path / "other", test=dataset([encoded(1)], caption=["A."]))
    with pytest.raises(ConfigError, match=r"holds an import of .* choose another folder"):
        import_dataset(other, tmp_path / "out")
    with pytest.raises(ConfigError, match="isn't empty and holds no import"):
        import_dataset(other, source)


def test_what_cannot_be_loaded_gives_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in ("nobody/nothing-such", tmp_path / "empty"):
        with pytest.raises(ConfigError, match="can't be loaded as a Hugging Face dataset") as raised:
            import_dataset(source, tmp_path / "out")
        assert "\n" not in str(raised.value) and str(source) in str(raised.value)


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'modalloy[datasets]'")):
        import_dataset("nobody/nothing", tmp_path / "out")


def test_reading_such_a_folder_in_place_says_how_to_import_it(tmp_path):
    source = saved(tmp_path, test=dataset([encoded()], caption=["A."]))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / "data" / "test.parquet").touch()
    for folder in (source, source / "test", tmp_path / "hub"):
        with pytest.raises(DataError, match="is a Hugging Face dataset; import it first"):
            read_collection(folder)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("g.txt", "g.txt is a file"),
        ("./gone", "./gone isn't there"),
        ("/gone", "/gone isn't there"),
        ("a/b/c", "a/b/c isn't there"),
        ("data/g.zip", "data/g.zip isn't there"),
    ],
)
def test_what_is_no_folder_and_no_name_is_refused_unasked(tmp_path, monkeypatch, source, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "g.txt").touch()
    monkeypatch.delattr("datasets.load_dataset")
    with pytest.raises(ConfigError, match=f"^{problem}; a dataset is a folder or a name on the hub such as user/name"):
        import_dataset(source, tmp_path / "out")


def test_the_libraries_own_bars_and_logs_are_silent(tmp_path, monkeypatch, capfd):
    logger = logging.getLogger("huggingface_hub.utils._http")
    datasets.enable_progress_bars()

    def loaded(*_arguments, **_options):
        assert datasets.are_progress_bars_disabled()
        logger.warning("Retrying in 8s")
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr("datasets.load_dataset", loaded)
    level = logging.getLogger("huggingface_hub").level
    with pytest.raises(ConfigError, match="Couldn't reach the hub"):
        import_dataset("user/name", tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled() and logging.getLogger("huggingface_hub").level == level
