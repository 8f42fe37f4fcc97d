"""Folders in which not everything that is called a picture is one."""

import os
import re
import struct
import zlib

import pytest
from index.memory_index import MemoryIndex
from index.small_source import CountingEncoder, bring, rows_in, write_picture
from PIL import Image

from modalloy.index.encoder_spec import head_of


def bomb(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that says that it has so many pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**5)))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        write_picture(tmp_path / "pictures" / f"{number}.png", number, ["a caption"])
    return tmp_path / "pictures"


def fill(folder):
    """What became of the index, and its rejects with their reasons."""
    encoder = CountingEncoder()
    index = MemoryIndex(head_of(encoder))
    done = bring(index, encoder, folder)
    return set(rows_in(index)), {reject.id: reject.reason for reject in done.rejects}


WHOLE = {f"{number}.png{ending}" for number in range(3) for ending in ("", "#0")}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: os.mkfifo(path), "device or pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "leads out of|device"),
        (lambda path: path.symlink_to(path), "can't be|loop|symbolic|leads out|doesn't exist"),
        (lambda path: path.symlink_to("nowhere.png"), "doesn't exist"),
        (lambda path: path.write_bytes(bomb(50_000, 50_000)), "pixels"),
        (lambda path: path.write_bytes(bomb(2**31 - 1, 2**31 - 1)), "pixels"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"<svg onload='alert(1)'/>"), "isn't a picture"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "isn't a picture"),
        (lambda path: Image.new("RGB", (4, 4001)).save(path, "PNG"), ""),
    ],
)
def test_what_is_no_picture_is_listed_and_the_rest_is_indexed(folder, make, reason):
    make(folder / "strange.png")
    ids, rejects = fill(folder)
    if not reason:
        assert (ids, rejects) == (WHOLE | {"strange.png"}, {})
        return
    assert ids == WHOLE and list(rejects) == ["strange.png"]
    assert re.search(reason, rejects["strange.png"]) and "\n" not in rejects["strange.png"]


def test_a_folder_that_is_called_like_a_picture_is_looked_into(folder):
    write_picture(folder / "folder.png" / "inside.png", 9)
    assert fill(folder) == (WHOLE | {"folder.png:inside.png"}, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_picture_without_permission_is_listed(folder):
    (folder / "0.png").chmod(0)
    ids, rejects = fill(folder)
    assert ids == {id for id in WHOLE if not id.startswith("0.png")} and "permission denied" in rejects["0.png"]
