import logging
import threading
from pathlib import Path

import pytest

from modalloy.errors import DataError
from modalloy.index import Source, watch
from modalloy.index.watch import watched_folders


def test_folders_are_watched_once_and_missing_ones_are_said_to_be_left_out(tmp_path, caplog):
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    (tmp_path / "lists").mkdir()
    sources = [
        Source("", str(tmp_path / "pictures"), None, str(tmp_path / "pictures")),
        Source("more", str(tmp_path / "lists" / "list.jsonl"), None, str(tmp_path / "pictures" / "more")),
        Source("gone", str(tmp_path / "gone"), None, str(tmp_path / "gone")),
        Source("demo", "demo", None, str(tmp_path / "lists")),
    ]
    # The folder of what isn't there may be where it comes back, but may hold anything.
    assert watched_folders(sources[:2]) == [tmp_path / "lists", tmp_path / "pictures"]
    assert "isn't there" not in caplog.text
    watched_folders(sources)
    assert f"{tmp_path / 'gone'} isn't there" in caplog.text


class Steps:
    """Does one thing after each update, and ends the watch after the last."""

    def __init__(self, *steps):
        self.steps, self.stop, self.updates = list(steps), threading.Event(), 0

    def update(self):
        self.updates += 1
        if not self.steps:
            self.stop.set()
            return
        # Meanwhile, since what changes during an update must be noticed too.
        self.steps.pop(0)()


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(watch, "_DEBOUNCE_MS", 50)
    monkeypatch.setattr(watch, "_FIRST_LOOK_MS", 50)


def run(folder, steps, ignored):
    timer = threading.Timer(20, steps.stop.set)
    timer.start()
    watch.watch([folder], steps.update, str(ignored), steps.stop)
    timer.cancel()


def test_each_change_is_followed_by_an_update_and_failures_are_survived(tmp_path, quickly, caplog):
    def failing():
        (tmp_path / "b.png").write_bytes(b"1")
        raise DataError("a bad\nfile")

    steps = Steps(lambda: (tmp_path / "a.png").write_bytes(b"1"), failing, lambda: (tmp_path / "a.png").unlink())
    with caplog.at_level(logging.ERROR):
        run(tmp_path, steps, tmp_path / "index")
    assert steps.updates == 4 and steps.steps == [] and "a bad file" in caplog.text


def test_what_the_index_itself_writes_starts_nothing(tmp_path, quickly):
    (tmp_path / "index").mkdir()
    steps = Steps(lambda: ((tmp_path / "index" / "x").write_bytes(b"1"), (tmp_path / ".hidden.png").write_bytes(b"1")))
    timer = threading.Timer(1, steps.stop.set)
    timer.start()
    watch.watch([tmp_path], steps.update, str(tmp_path / "index"), steps.stop)
    assert steps.updates == 1


def test_ctrl_c_ends_it_cleanly(tmp_path, quickly, caplog):
    def interrupted():
        raise KeyboardInterrupt

    with caplog.at_level(logging.INFO):
        watch.watch([Path(tmp_path)], interrupted, str(tmp_path / "index"))
    assert "no longer watching" in caplog.text
