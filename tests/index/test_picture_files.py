import os

import pytest
from index.picture_rows import picture_rows

from modalloy.errors import ImageError
from modalloy.index import Source
from modalloy.index.picture_files import PictureFiles


@pytest.fixture
def row(tmp_path):
    return picture_rows(tmp_path / "pictures", 1)[0]


@pytest.fixture
def files(tmp_path):
    return PictureFiles([Source("", "x", None, str(tmp_path / "pictures")), Source("unread", "x", None, "")])


def test_a_picture_is_found_by_its_row(files, row, tmp_path):
    assert files.path(row) == str(tmp_path / "pictures" / "sub" / "0.png")
    assert files.image(row).size == files.image({**row, "sha256": None, "source": None}).size == (8, 6)


def test_only_the_folders_that_are_asked_for_are_touched(row, tmp_path, monkeypatch):
    asked, real = [], os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **options: asked.append(str(path)) or real(path, **options))
    files = PictureFiles([Source(name, "x", None, str(tmp_path / (name or "pictures"))) for name in ("", "unmounted")])
    found = list(files.paths([row, {**row, "path": None}, row]))
    assert found == [files.path(row), None, files.path(row)] and found[0] is not None
    assert not any("unmounted" in path for path in asked)
    # Once for all rows, and once for each of those asked for alone.
    assert asked.count(str(tmp_path / "pictures")) == 3


@pytest.mark.parametrize(
    "columns", [{"source": "other"}, {"source": "unread"}, {"path": None}, {"path": "../0.png"}, {"path": "out.png"}]
)
def test_what_a_hostile_index_says_leads_nowhere(files, row, tmp_path, columns, monkeypatch):
    (tmp_path / "pictures" / "sub" / "0.png").rename(tmp_path / "0.png")
    (tmp_path / "pictures" / "out.png").symlink_to(tmp_path / "0.png")
    # Where a folder without a name would be.
    monkeypatch.chdir(tmp_path / "pictures")
    row = {**row, **columns}
    assert files.path(row) is None
    for ask in (files.open, files.image):
        with pytest.raises(ImageError):
            ask(row)


def test_a_folder_is_looked_up_once_for_a_picture(files, row, tmp_path, monkeypatch):
    asked, real = [], os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **options: asked.append(str(path)) or real(path, **options))
    files.image(row)
    with pytest.raises(ImageError, match=r"sub/0\.png has changed"):
        files.image({**row, "sha256": "0" * 64})
    assert asked.count(str(tmp_path / "pictures")) == 2


def test_only_what_was_indexed_is_decoded(files, row):
    with pytest.raises(ImageError, match="has changed since it was indexed"):
        files.image({**row, "sha256": "0" * 64})
