"""An index on a disk that is full, or that can't be written to."""

import multiprocessing
import os
import sys

import pytest
from index.disk_process import build_where_there_is_little_room, change_what_is_read_only
from index.index_process import run_stage, write_pictures
from index.small_source import rows_in

from modalloy.index import open_index

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="disks of a process's own are Linux's"),
]


@pytest.fixture
def told(monkeypatch):
    """Runs a function in another process, and gives what it tells."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["index.index_process"])

    def run(function, *arguments):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=function, args=(theirs, *arguments))
        process.start()
        theirs.close()
        answer = ours.recv()
        process.join()
        assert process.exitcode == 0
        return answer

    return run


@pytest.mark.parametrize("how", ["files", "disk"])
def test_a_full_disk_is_said_and_harms_nothing(tmp_path, told, how):
    write_pictures(tmp_path)
    run_stage("build", tmp_path, tmp_path / "whole")
    failures = told(build_where_there_is_little_room, how, tmp_path, rows_in(open_index(tmp_path / "whole")))
    if isinstance(failures, str):
        pytest.skip(f"no small disk can be mounted here: {failures}")
    assert failures > 1


def test_a_disk_that_cannot_be_written_to_is_said_and_can_be_read(tmp_path, told):
    write_pictures(tmp_path)
    messages = told(change_what_is_read_only, tmp_path)
    if isinstance(messages, str):
        pytest.skip(f"no disk can be mounted here: {messages}")
    assert len(messages) == 5 and all("Read-only file system" in message for message in messages)
