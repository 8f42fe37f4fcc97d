import io
import os
import tarfile

import pytest

from modalloy.data.inside import Inside
from modalloy.errors import ImageError


@pytest.fixture
def root(tmp_path):
    """A folder with a file, a tar, links that stay in it and links that lead out of it."""
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a.png").write_bytes(b"picture")
    (tmp_path / "secret.png").write_bytes(b"secret")
    with tarfile.open(root / "some.tar", "w") as tar:
        member = tarfile.TarInfo("in/b.png")
        member.size = 6
        tar.addfile(member, io.BytesIO(b"member"))
    (tmp_path / "other.tar").write_bytes((root / "some.tar").read_bytes())
    for link, target in {
        "link.png": "deep/a.png",
        "near": "deep",
        "out.png": "../secret.png",
        "door": "..",
        "out.tar": "../other.tar",
        "loop.png": "loop.png",
        "chain.png": "out.png",
    }.items():
        (root / link).symlink_to(target)
    os.mkfifo(root / "pipe")
    return root


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("deep/a.png", b"picture"),
        ("link.png", b"picture"),
        ("near/a.png", b"picture"),
        ("some.tar/in/b.png", b"member"),
    ],
)
def test_files_inside_are_opened(root, path, content):
    opened, again = Inside(root).open(path), Inside(root).open(path)
    with opened.file as file, again.file:
        assert file.read() == content
    assert opened.state == again.state


def test_a_folder_that_is_reached_by_a_link_is_a_folder(root, tmp_path):
    (tmp_path / "linked").symlink_to(root)
    with Inside(tmp_path / "linked").open("link.png").file as file:
        assert file.read() == b"picture"


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "deep/../../secret.png",
        "{root}/../secret.png",
        "{root}/deep/a.png",
        "deep\\..\\..\\secret.png",
        "C:/secret.png",
        "out.png",
        "chain.png",
        "door/secret.png",
        "out.tar/in/b.png",
        "door/other.tar/in/b.png",
        "some.tar/../../secret.png",
        "",
        ".",
        "deep/a.png\0",
        "\ud800",
    ],
)
def test_nothing_outside_is_looked_for(root, path):
    inside, path = Inside(root), path.format(root=root)
    for ask in (inside.real, inside.open):
        with pytest.raises(ImageError, match=r"isn't inside|leads out|isn't UTF-8"):
            ask(path)


@pytest.mark.parametrize(
    "path", ["deep", "pipe", "loop.png", "nowhere.png", "a" * 5000, "a" * 5000 + ".tar/b", "some.tar/nowhere.png"]
)
def test_what_is_no_file_is_not_waited_for(root, path):
    with pytest.raises(ImageError):
        Inside(root).open(path)
