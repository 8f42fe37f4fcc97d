import re

import pytest

from modalloy.data.build import Record
from modalloy.data.readers import read_collection
from modalloy.data.readers.flickr_token import read_token
from modalloy.errors import DataError


def test_lines_of_one_picture_are_joined(tmp_path):
    path = tmp_path / "results_20130124.token"
    path.write_bytes(b"1.jpg#0\tA cat .\r\n2.jpg.1#0\tcaf\xe9\n\n1.jpg#1\tA #1 pet\twith a tab .\n3.jpg#0\t\n")
    assert read_token(path, split="test").records == (
        Record("1.jpg", "1.jpg", "test", ("A cat .", "A #1 pet\twith a tab .")),
        Record("2.jpg.1", "2.jpg.1", "test", ("caf\udce9",)),
        Record("3.jpg", "3.jpg", "test", ("",)),
    )


@pytest.mark.parametrize("line", ["2.jpg\tA cat.", "2.jpg#0 A cat.", "2.jpg#x\tA cat.", "#0\tA cat."])
def test_bad_lines_are_named(tmp_path, line):
    (tmp_path / "a.token").write_text(f"1.jpg#0\tA.\n{line}\n")
    with pytest.raises(DataError, match=re.escape("a.token:2: a line must be PICTURE#NUMBER, a tab and a caption")):
        read_token(tmp_path / "a.token")


def test_found_by_its_name_and_image_folder(tmp_path, picture):
    picture("Images/1.png")
    for name in ("Flickr8k.token.txt", "results.token"):
        (tmp_path / name).write_text("1.png#0\tA.\n")
        manifest, rejects = read_collection(tmp_path / name, tmp_path / "Images")
        assert (manifest.captions, rejects) == (["A."], [])
    with pytest.raises(DataError, match="isn't there"):
        read_token(tmp_path / "results.token", tmp_path / "nowhere")
