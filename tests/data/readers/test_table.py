import json
import re

import pytest

from modalloy.data.build import Record
from modalloy.data.readers.table import CAPTION_KEYS, PATH_KEYS, read_csv, read_jsonl
from modalloy.errors import DataError


def jsonl(folder, text):
    path = folder / "rows.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(folder, text):
    path = folder / "rows.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_jsonl(tmp_path):
    path = jsonl(
        tmp_path,
        '{"path": "x/a.png", "captions": ["A.", "B."], "split": "val", "id": 7, "family": "f"}\n'
        "\n"
        '{"file_name": "b.png", "text": "C."}\n{"file_name": "b.png", "text": "D."}\n'
        '{"image": "c.png"}',
    )
    collection = read_jsonl(path, split="test")
    assert collection.root == tmp_path
    assert collection.records == (
        Record("7", "x/a.png", "val", ("A.", "B."), "f"),
        Record("b.png", "b.png", "test", ("C.", "D.")),
        Record("c.png", "c.png", "test", ()),
    )


@pytest.mark.parametrize("key", PATH_KEYS)
@pytest.mark.parametrize("caption", CAPTION_KEYS)
def test_names_that_columns_may_have(tmp_path, key, caption):
    assert read_csv(table(tmp_path, f"{key},{caption}\na.png,A.\n")).records[0].captions == ("A.",)
    assert read_jsonl(jsonl(tmp_path, f'{{"{key}": "a.png", "{caption}": "A."}}')).records[0].captions == ("A.",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{oops", "rows.jsonl:1: not JSON"),
        ("[1]", "rows.jsonl:1: a line must hold an object, got a list"),
        ('{"caption": "A."}', "rows.jsonl:1: no image path; it should stand under one of path"),
        ('{"path": null}', "rows.jsonl:1: no image path"),
        ('{"path": ["a"]}', "rows.jsonl:1: path must be a text, got a list"),
        ('{"path": "a", "captions": "A."}', "rows.jsonl:1: captions must be a list of texts, got a text"),
        ('{"path": "a", "captions": [1]}', "rows.jsonl:1: captions must be a list of texts, got a list with a number"),
        ('{"path": "a", "split": 1.5}', "rows.jsonl:1: split must be a text, got a number"),
        (
            '{"path": "a", "captions": []}\n{"path": "a", "captions": []}',
            "rows.jsonl:2: the id 'a' stands at",
        ),
        (
            '{"path": "a", "text": "A."}\n{"path": "a", "captions": ["A."]}',
            "rows.jsonl:2: the id 'a' stands at",
        ),
        ('{"path": "a", "id": "1"}\n{"path": "b", "id": "1"}', "rows.jsonl:1 already; ids must be unique"),
        (
            '{"path": "a", "split": "val"}\n{"path": "a", "split": "test"}',
            "rows.jsonl:2: 'a' has another split",
        ),
    ],
)
def test_bad_jsonl_line_is_named(tmp_path, lines, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_jsonl(jsonl(tmp_path, lines))


def test_jsonl_bytes_that_are_not_utf8_reach_only_their_caption(tmp_path):
    records = read_jsonl(jsonl(tmp_path, b'{"path": "a", "captions": ["caf\xe9", "B."]}\n{"path": "b"}\n')).records
    assert records[0].captions == ("caf\udce9", "B.")
    assert records[1].path == "b"


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_csv_rows_of_one_image_are_joined(tmp_path, delimiter):
    rows = [("Image", " Caption ", "split"), ("a.png", '"A, b; c|d\te"', "val"), ("b.png", "B.", "test")]
    rows.append(("a.png", " C. ", "val"))
    text = "\ufeff" + "\r\n".join(delimiter.join(row) for row in rows) + "\r\n\r\n"
    assert read_csv(table(tmp_path, text)).records == (
        Record("a.png", "a.png", "val", ("A, b; c|d\te", "C.")),
        Record("b.png", "b.png", "test", ("B.",)),
    )


def test_csv_caption_over_two_lines(tmp_path):
    records = read_csv(table(tmp_path, 'path,caption\na,"one\ntwo"\n')).records
    assert records[0].captions == ("one\ntwo",)


def test_csv_without_captions(tmp_path):
    assert read_csv(table(tmp_path, "id,path\n1,a.png\n")).records == (Record("1", "a.png", "train", ()),)


def test_csv_row_that_ends_early_loses_only_its_caption(tmp_path):
    text = "image_name| comment_number| comment\na.jpg| 0| A.\na.jpg| 4   A dog runs.\nb.jpg| 0| B.\n"
    records = read_csv(table(tmp_path, text)).records
    assert [one.captions for one in records] == [("A.", ""), ("B.",)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows.csv is empty; its first line should name the columns"),
        ("\n \n", "rows.csv is empty"),
        ("\npath,caption\n", "rows.csv:1: no column of image paths; call it one of path"),
        ("id,caption\n1,A.\n", "rows.csv:1: no column of image paths"),
        ("path,caption\na,A cat, a dog.\n", "rows.csv:2: 3 values for 2 columns; put quotes"),
        ("path,caption\na," + "x" * 200_000 + "\n", "rows.csv:2: not CSV (field larger"),
        ("path,caption,id\na,A.,1\nb,B.,1\n", "rows.csv:3: the id '1' stands at"),
        ("path,caption,split\na,A.,val\na,B.,\n", "rows.csv:3: 'a' has another split"),
        ("path,caption,caption\na,A.,B.\n", "rows.csv:1: there are two columns called 'caption'"),
        ('path\tcaption\na.png\t"A cat\nb.png\tB.\nc.png\tC.\n', "rows.csv:4: a quote that an earlier line opens"),
        ('caption;image\n"A;a.png\nB.;b.PNG\nC";c.png\n', "rows.csv:4: a quote that an earlier line opens"),
    ],
)
def test_bad_csv_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_csv(table(tmp_path, text))


def test_image_folder(tmp_path):
    (tmp_path / "images").mkdir()
    for read, path in (
        (read_jsonl, jsonl(tmp_path, '{"path": "a"}')),
        (read_csv, table(tmp_path, "path\na\n")),
    ):
        assert read(path).root == tmp_path
        assert read(path, tmp_path / "images").root == tmp_path / "images"
        with pytest.raises(DataError, match="isn't there"):
            read(path, tmp_path / "nowhere")
        with pytest.raises(DataError, match=r"none\.csv can't be read"):
            read(tmp_path / "none.csv")


def test_lines_are_read_one_by_one_and_end_in_newlines_alone(tmp_path):
    # U+2028 and a lone carriage return separate lines for Python, but not in these files.
    caption = "A\u2028cat\x0bsits."
    path = jsonl(tmp_path, f'\ufeff{{"path": "a", "text": "{caption[:5]}"}}\r\n{{"path": "b", "text": "B."}}\r\n')
    assert [one.captions for one in read_jsonl(path).records] == [(caption[:5],), ("B.",)]
    assert read_csv(table(tmp_path, f"path,caption\na,{caption}\n")).records[0].captions == (caption,)


def test_a_lone_carriage_return_in_csv_is_named(tmp_path):
    with pytest.raises(DataError, match=r"rows\.csv:2: not CSV"):
        read_csv(table(tmp_path, "path,caption\na,A\rcat\n"))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_numbered_captions_of_one_row(tmp_path, suffix):
    rows = [("a.jpg", "A cat.", "A pet."), ("b.jpg", "A dog.", "")]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        path.write_text("path,caption_0,caption_1\n" + "".join(",".join(row) + "\n" for row in rows))
        records = read_csv(path).records
    else:
        path.write_text("".join(json.dumps({"path": a, "caption_0": b, "caption_1": c}) + "\n" for a, b, c in rows))
        records = read_jsonl(path).records
    assert [record.captions for record in records] == [("A cat.", "A pet."), ("A dog.", "")]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("capton", "caption"), ("txt", "text"), ("sentance", "sentence"), ("image_caption", "caption")],
)
def test_a_misspelt_column_of_captions_is_named(tmp_path, name, meant):
    said = rf"no column of captions; did you mean '{name}' to be '{meant}'\? Known names:"
    with pytest.raises(DataError, match=rf"rows\.csv:1: {said} caption, text"):
        read_csv(table(tmp_path, f"path,{name},split\na.png,A.,val\n"))
    with pytest.raises(DataError, match=rf"rows\.jsonl: {said} captions, caption, text"):
        read_jsonl(jsonl(tmp_path, f'{{"path": "a.png"}}\n{{"path": "b.png", "{name}": "A."}}\n'))


def test_a_list_of_captions_is_for_json_alone_and_keys_are_lower_case_there(tmp_path):
    with pytest.raises(DataError, match="did you mean 'captions' to be 'caption'"):
        read_csv(table(tmp_path, "path,captions\na.png,A.\n"))
    with pytest.raises(DataError, match="did you mean 'Captions' to be 'captions'"):
        read_jsonl(jsonl(tmp_path, '{"path": "a.png", "Captions": ["A."]}'))


@pytest.mark.parametrize("columns", ["width", "caption,capton", "caption_0,capton", "option"])
def test_other_columns_are_passed_over(tmp_path, columns):
    names = columns.split(",")
    assert len(read_csv(table(tmp_path, f"path,{columns}\na.png{',1' * len(names)}\n")).records) == 1
    row = json.dumps({"path": "a.png", **dict.fromkeys(names, "1")})
    assert len(read_jsonl(jsonl(tmp_path, row)).records) == 1
