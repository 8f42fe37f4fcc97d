import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalloy.errors import DataError
from modalloy.files import (
    atomic_path,
    read_json,
    remove_partial_files,
    sha256_of,
    sha256_of_text,
    write_json,
    write_text,
)


def test_replaces_the_old_file_only_at_the_end(tmp_path):
    target = tmp_path / "new" / "folder" / "a.txt"
    write_text(target, "old")
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_failure_before_anything_was_written(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_writers_do_not_meet(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_path(target) as first, atomic_path(target) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"


def test_is_on_disk_before_it_is_renamed(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor):
        steps.append("fsync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name[:9])
        fsync(descriptor)

    def spy_replace(source, target):
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    (tmp_path / "folder").mkdir()
    write_text(tmp_path / "folder" / "a.txt", "text")
    assert steps == ["fsync .partial-", "rename", "fsync folder"]


KILLED_WRITER = """
import sys, time
from modalloy.files import atomic_path
with atomic_path(sys.argv[1]) as temporary, temporary.open("w") as file:
    file.write("half of the new text")
    file.flush()
    print("writing", flush=True)
    time.sleep(600)
"""


def test_kill_during_a_write_leaves_the_old_file_whole(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    command = [sys.executable, "-c", KILLED_WRITER, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert [path.read_text() for path in tmp_path.glob(".partial-*")] == ["half of the new text"]
    write_text(target, "new")
    assert target.read_text() == "new"
    remove_partial_files(tmp_path)
    assert list(tmp_path.iterdir()) == [target]


def test_only_partial_files_are_removed(tmp_path):
    for name in (".partial-0-a", ".tmpXy12", "a.partial-", "a"):
        (tmp_path / name).touch()
    remove_partial_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.partial-"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
).filter(lambda value: "\\ud" not in ascii(value))


@given(JSON)
def test_json_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, value)
    assert read_json(path) == value


def test_nan_is_refused_and_the_old_file_stays(tmp_path):
    write_json(tmp_path / "a.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert read_json(tmp_path / "a.json") == {"loss": 1.0}


@pytest.mark.parametrize("content", [b"", b"{oops", b'{"a": "caf\xe9"}', b"[" * 100_000])
def test_what_is_not_json(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json isn't JSON"):
        read_json(tmp_path / "a.json")


def test_missing_or_unreadable_json(tmp_path):
    with pytest.raises(DataError, match=r"a\.json doesn't exist"):
        read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"can't be read \(Is a directory\)"):
        read_json(tmp_path)


@given(st.binary())
def test_sha256(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("sha") / "a"
    path.write_bytes(content)
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()


def test_sha256_of_text():
    assert sha256_of_text("é") == hashlib.sha256(b"\xc3\xa9").hexdigest()
