import gzip
import hashlib
import io
import os
import re
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modalloy.data.images import check_image, open_image, sha256_of_image
from modalloy.data.item import Item
from modalloy.data.manifest import Manifest
from modalloy.data.tar_members import read_member, split_tar_path, tar_index
from modalloy.errors import ImageError


def png(colour: int = 0) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 3), (colour, 0, 0)).save(content, "png")
    return content.getvalue()


def written(path: Path, *members: tuple[str | tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            header = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            header.size = len(content) if header.isreg() else 0
            tar.addfile(header, io.BytesIO(content))
    return path


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_what_tarfile_extracts(tmp_path, format):
    long = "folder/" + "n" * 90 + ".txt"
    tar = written(tmp_path / "a.tar", ("./b.txt", b"B"), ("a.txt", b"x" * 1000), (long, b"long"), format=format)
    index = tar_index(tar)
    assert (list(index.members), index.faults) == (["b.txt", "a.txt", long], ())
    with tarfile.open(tar) as whole:
        for header in whole:
            assert read_member(tar, header.name.removeprefix("./")) == whole.extractfile(header).read()


def test_a_picture_in_a_tar_is_read_like_a_file(tmp_path):
    (tmp_path / "x").mkdir()
    tar = written(tmp_path / "x" / "a.TAR", ("cats/1.png", png(7)), ("2.png", b""), ("3.png", b"no picture"))
    path = tar / "cats" / "1.png"
    assert split_tar_path(path) == (tar, "cats/1.png")
    assert open_image(path).getpixel((0, 0)) == (7, 0, 0)
    check_image(str(path))
    assert sha256_of_image(path) == hashlib.sha256(png(7)).hexdigest()
    for name, reason in (("2.png", "is empty"), ("3.png", "isn't a picture"), ("4.png", "doesn't exist")):
        with pytest.raises(ImageError, match=rf"a\.TAR/{re.escape(name)} {reason}"):
            open_image(tar / name)


def test_a_folder_called_like_a_tar_is_a_folder(tmp_path):
    (tmp_path / "a.tar").mkdir()
    (tmp_path / "a.tar" / "1.png").write_bytes(png(3))
    assert split_tar_path(tmp_path / "a.tar" / "1.png") is None
    assert open_image(tmp_path / "a.tar" / "1.png").getpixel((0, 0)) == (3, 0, 0)
    assert split_tar_path(tmp_path / "gone.tar" / "1.png") is None
    with pytest.raises(ImageError, match="doesn't exist"):
        open_image(tmp_path / "gone.tar" / "1.png")


def test_a_manifest_says_what_is_wrong_with_pictures_in_tars(tmp_path):
    tar = written(tmp_path / "a.tar", ("1.png", png(1)), ("2.png", png(2)))
    sums = [hashlib.sha256(png(number)).hexdigest() for number in (1, 2)]
    items = [Item(str(row), f"a.tar/{row}.png", digest, "test", ()) for row, digest in enumerate(sums, start=1)]
    manifest = Manifest(tmp_path, tuple(items))
    assert manifest.check_files() == []
    # The index follows when the tar changes.
    written(tar, ("1.png", png(9)))
    os.utime(tar, ns=(1, 1))
    changed, gone = manifest.check_files()
    assert "has changed" in changed and "a.tar/2.png doesn't exist" in gone
    tar.unlink()
    assert all("is missing" in problem for problem in manifest.check_files())


def test_a_truncated_tar_gives_what_is_whole(tmp_path):
    tar = written(tmp_path / "a.tar", ("1.txt", b"one"), ("2.txt", b"x" * 5000), ("3.txt", b"three"))
    content = tar.read_bytes()
    tar.write_bytes(content[: 512 + 512 + 512 + 1000])
    index = tar_index(tar)
    assert list(index.members) == ["1.txt"]
    assert [name for name, _ in index.faults] == ["2.txt", ""]
    assert "cut off" in index.faults[0][1] and "cut off" in index.faults[1][1]
    # Between two members only the end mark is missing.
    tar.write_bytes(content[:1024])
    assert list(tar_index(tar).members) == ["1.txt"]
    assert "no end mark" in tar_index(tar).faults[0][1]


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    tar = written(tmp_path / "a.tar", ("1.txt", b"one"), ("2.txt", b"two"))
    content = bytearray(tar.read_bytes())
    content[1024] ^= 1
    tar.write_bytes(content)
    assert list(tar_index(tar).members) == ["1.txt"]
    assert tar_index(tar).faults == (("", "the tar is damaged at byte 1,024; what follows is left out"),)


@pytest.mark.parametrize("content", [b"", b"no tar at all", b"x" * 5000])
def test_what_is_no_tar_has_no_members(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    index = tar_index(tmp_path / "a.tar")
    assert index.members == {} and len(index.faults) == 1


@pytest.mark.parametrize("name", ["/etc/x.txt", "../x.txt", "a/../../x.txt", "a\\x.txt", "C:x.txt"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    index = tar_index(written(tmp_path / "a.tar", (name, b"x"), ("y.txt", b"y")))
    assert list(index.members) == ["y.txt"]
    ((refused, reason),) = index.faults
    assert refused == name and "isn't inside the image folder" in reason


def test_only_plain_files_and_the_first_of_two_count(tmp_path):
    link, pipe, folder = tarfile.TarInfo("link.txt"), tarfile.TarInfo("pipe.txt"), tarfile.TarInfo("folder")
    link.type, link.linkname, pipe.type, folder.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.FIFOTYPE, tarfile.DIRTYPE
    members = ((link, b""), (pipe, b""), (folder, b""), ("a.txt", b"first"), ("./a.txt", b"second"))
    tar = written(tmp_path / "a.tar", *members)
    assert read_member(tar, "a.txt") == b"first"
    faults = dict(tar_index(tar).faults)
    assert list(faults) == ["link.txt", "pipe.txt", "./a.txt"]
    assert "is a link" in faults["link.txt"] and "twice; the first is kept" in faults["./a.txt"]


def test_a_member_that_is_too_large_is_not_read(tmp_path):
    tar = written(tmp_path / "a.tar", ("a.txt", b"12345"))
    assert read_member(tar, "a.txt", 5) == b"12345"
    with pytest.raises(ImageError, match=r"a\.txt has 5 bytes; at most 4 are allowed"):
        read_member(tar, "a.txt", 4)


def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path):
    huge = tarfile.TarInfo("names")
    huge.type, huge.size = tarfile.GNUTYPE_LONGNAME, 2**30
    (tmp_path / "a.tar").write_bytes(huge.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
    assert "a header of an impossible size" in tar_index(tmp_path / "a.tar").faults[0][1]


def test_compressed_tars_are_refused(tmp_path):
    tar = written(tmp_path / "a.tar", ("1.png", png()))
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    for read in (tar_index, lambda tar: open_image(tar / "1.png")):
        with pytest.raises(ImageError, match=r"a\.tar is compressed \(gzip\).* uncompress it"):
            read(tar)


def test_a_missing_or_shrunken_tar_is_named(tmp_path, monkeypatch):
    with pytest.raises(ImageError, match=r"gone\.tar can't be read"):
        tar_index(tmp_path / "gone.tar")
    tar = written(tmp_path / "a.tar", ("1.txt", b"one"))
    index = tar_index(tar)
    monkeypatch.setattr("modalloy.data.tar_members.tar_index", lambda tar: index)
    tar.write_bytes(b"x" * 513)
    with pytest.raises(ImageError, match=r"1\.txt is cut off"):
        read_member(tar, "1.txt")
    tar.unlink()
    with pytest.raises(ImageError, match=r"a\.tar can't be read \(No such file"):
        read_member(tar, "1.txt")


def test_threads_and_forked_processes_read_the_same_tar(tmp_path):
    members = {f"{number}.txt": os.urandom(700) for number in range(50)}
    tar = written(tmp_path / "a.tar", *members.items())
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda name: read_member(tar, name), list(members) * 4)) == list(members.values()) * 4
    with warnings.catch_warnings():
        # Later Pythons warn of forking where libraries have threads, which is what is tried here.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(0 if all(read_member(tar, name) == content for name, content in members.items()) else 1)
    assert os.waitpid(child, 0)[1] == 0


@settings(max_examples=60)
@given(data=st.data())
def test_damage_raises_nothing_and_members_stay_inside(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    tar = written(folder / "a.tar", ("1.txt", b"one"), ("n" * 120, b"x" * 600), ("3.txt", b"three"))
    content = bytearray(tar.read_bytes())
    place = st.integers(0, 5000)
    for at, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=4)):
        content[at] = value
    tar.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        index = tar_index(tar)
    except ImageError as error:
        assert "compressed" in str(error)
    else:
        for name, (offset, size) in index.members.items():
            assert 0 <= offset <= offset + size <= tar.stat().st_size
            assert len(read_member(tar, name)) == size
