import pytest

from modalloy.data.readers.collection import id_of_path, parse_json, read_text
from modalloy.errors import DataError


@pytest.mark.parametrize(
    ("path", "id"), [("a.png", "a.png"), ("./x/a.png", "x:a.png"), ("x/y/a#1.png", "x:y:a%231.png")]
)
def test_id_of_path(path, id):
    assert id_of_path(path) == id


def test_text_keeps_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9 caf\xc3\xa9\n")
    assert read_text(tmp_path / "a.txt") == "caf\udce9 café\n"
    with pytest.raises(DataError, match="can't be read"):
        read_text(tmp_path)


def test_json_mistakes_start_with_the_place():
    assert parse_json("[1]", "here") == [1]
    for text in ("{", "[" * 100_000):
        with pytest.raises(DataError, match=r"^here: not JSON"):
            parse_json(text, "here")
