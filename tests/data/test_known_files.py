import os
import shutil
import tarfile

import pytest
from PIL import Image

from modalloy.data import known_files, read_collection
from modalloy.data.known_files import KnownFiles
from modalloy.errors import ImageError
from modalloy.files import sha256_of


@pytest.fixture
def reads(monkeypatch):
    """The names of files whose bytes were read."""
    names, read = [], known_files.sha256_of_image
    monkeypatch.setattr(known_files, "sha256_of_image", lambda path: names.append(path.name) or read(path))
    return names


def write(path, colour=1):
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(path)
    return path


def test_only_files_that_look_changed_are_read(tmp_path, reads):
    for name in ("a.png", "b.png", "c.png"):
        write(tmp_path / name)
    known = KnownFiles()
    before = {name: known.look(tmp_path, name) for name in ("a.png", "b.png", "c.png")}
    assert before["a.png"].sha256 == sha256_of(tmp_path / "a.png")
    write(tmp_path / "b.png", 2)
    os.utime(tmp_path / "c.png", ns=(1, 1))
    reads.clear()
    manifest, _ = read_collection(tmp_path, known_files=KnownFiles(before))
    assert reads == ["b.png", "c.png"]
    assert [item.sha256 for item in manifest] == [sha256_of(tmp_path / item.path) for item in manifest]


def test_a_second_change_within_the_clocks_tick_is_not_missed(tmp_path):
    path, known = write(tmp_path / "a.bmp"), KnownFiles()
    for colour in range(2, 12):
        state = known.look(tmp_path, "a.bmp")
        write(path, colour)
        assert path.stat().st_size == state.bytes
        assert known.look(tmp_path, "a.bmp").sha256 == sha256_of(path) != state.sha256


def test_pictures_in_a_tar_change_with_it(tmp_path, reads):
    write(tmp_path / "cat.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "cat.png", "cat.png")
    state = KnownFiles().look(tmp_path, "a.tar/cat.png")
    assert state.bytes == (tmp_path / "cat.png").stat().st_size
    assert state.sha256 == sha256_of(tmp_path / "cat.png")
    reads.clear()
    assert KnownFiles({"a.tar/cat.png": state}).look(tmp_path, "a.tar/cat.png") == state and reads == []
    os.utime(tmp_path / "a.tar", ns=(1, 1))
    assert KnownFiles({"a.tar/cat.png": state}).look(tmp_path, "a.tar/cat.png").modified_ns == 1 and reads


def test_what_is_no_picture_is_an_error_with_its_name(tmp_path, monkeypatch):
    with pytest.raises(ImageError, match=r"nowhere\.png doesn't exist"):
        KnownFiles().look(tmp_path, "nowhere.png")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a\.png isn't a picture"):
        KnownFiles().look(tmp_path, "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"folder\.png is a folder"):
        KnownFiles().look(tmp_path, "folder.png")
    shutil.copy(write(tmp_path / "b.png"), tmp_path / "c.png")

    def failing(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(known_files, "sha256_of_image", failing)
    with pytest.raises(ImageError, match=r"c\.png can't be read \(Input/output error\)"):
        KnownFiles().look(tmp_path, "c.png")
