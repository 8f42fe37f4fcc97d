"""An index whose writer is killed with SIGKILL at moments that nothing foresees: nothing that was confirmed is lost."""

import copy
import multiprocessing
import os
import random
import shutil
import sys
import time
from itertools import islice

import pytest
import torch
from index.index_process import PRECEDING, run_and_tell, run_stage, told_until_its_end, write_pictures
from index.small_source import DIM, rows_in

from modalloy.errors import CheckpointError
from modalloy.index import open_index
from modalloy.index.verify import verify_index

KILLS = {"build": 14, "add": 10, "update": 14, "remove": 6, "upgrade": 10, "optimize": 6}
pytestmark = pytest.mark.slow


@pytest.fixture
def context(monkeypatch):
    # Processes forked of one that has imported everything start at once; it knows this process's path by the
    # environment alone.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["index.index_process"])
    return context


class Writer:
    """A stage that runs in a process of its own."""

    def __init__(self, context, stage, root, location):
        self.tells, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=run_and_tell, args=(theirs, stage, root, location))
        self.process.start()
        theirs.close()
        assert self.tells.recv() is None
        self.commits = []

    def wait_for(self, commits):
        """Until it has told of so many, or has ended."""
        self.commits += islice(told_until_its_end(self.tells), commits)

    def end(self, kill=False):
        """Its exit status."""
        if kill:
            self.process.kill()
        self.commits += told_until_its_end(self.tells)
        self.process.join()
        return self.process.exitcode


class Stage:
    """What an index holds before and after a stage that nothing disturbs."""

    def __init__(self, context, stage, root):
        self.context, self.stage, self.root = context, stage, root
        write_pictures(root)
        for each in PRECEDING[stage]:
            run_stage(each, root, root / "before")
        self.before = rows_in(open_index(root / "before")) if PRECEDING[stage] else {}
        writer, started = self.start(self.copy("after")), time.monotonic()
        assert writer.end() == 0
        self.seconds, self.commits = time.monotonic() - started, len(writer.commits)
        self.after, self.head = rows_in(open_index(root / "after")), open_index(root / "after").head

    def copy(self, name):
        """The index as it was before."""
        if self.before:
            shutil.copytree(self.root / "before", self.root / name)
        return self.root / name

    def start(self, location):
        return Writer(self.context, self.stage, self.root, location)

    def killed(self, drawn, location):
        """All that was confirmed by one that was killed at some moment; None where it ended before that."""
        writer = self.start(location)
        writer.wait_for(drawn.randint(0, self.commits))
        time.sleep(drawn.uniform(0, 1.5 * self.seconds / (self.commits + 1)))
        status = writer.end(kill=True)
        assert status in (-9, 0)
        return writer.commits if status == -9 else None

    def check(self, index, confirmed=()):
        """That it holds each row as it was before or will be, what was confirmed, and nothing twice."""
        snapshot = index.snapshot()
        index = copy.copy(index)
        index.snapshot = lambda: snapshot
        rows = rows_in(index)
        if self.stage == "upgrade":
            # All vectors at once.
            assert rows in (self.before, self.after)
            confirmed = ()
        for id, row in rows.items():
            assert row in (self.before.get(id), self.after.get(id)), id
        assert set(self.before) & set(self.after) <= set(rows)
        for _, added, removed in confirmed:
            assert {id for id in added if id in self.after} <= set(rows)
            assert not {id for id in removed if id not in self.after} & set(rows)
        verified = verify_index(index)
        assert (verified.findings, verified.rows) == ((), len(rows))
        for modality in ("image", "text"):
            column = f"{modality}_vector"
            queries = [row[column] for row in rows.values() if row[column] is not None][:5]
            for found in index.snapshot().search(modality, torch.tensor(queries).view(-1, DIM), 3):
                assert found.scores[0] == pytest.approx(1)

    def finish(self, location):
        """Runs it to its end."""
        run_stage(self.stage, self.root, location)
        index = open_index(location)
        assert rows_in(index) == self.after and index.head == self.head


@pytest.mark.parametrize("stage", KILLS)
def test_killed_at_any_moment_nothing_confirmed_is_lost(tmp_path, context, stage):
    stage, kills, seed = Stage(context, stage, tmp_path), 0, 0
    while kills < KILLS[stage.stage]:
        seed += 1
        assert seed < 4 * KILLS[stage.stage], "it is hardly ever killed"
        print(f"{stage.stage}, seed {seed}")
        drawn, location, confirmed = random.Random(seed), stage.copy(f"killed-{seed}"), []
        # What goes on after a kill is killed again.
        for _ in range(drawn.choice([1, 1, 2])):
            told = stage.killed(drawn, location)
            kills += told is not None
            confirmed += told or []
            try:
                stage.check(open_index(location), confirmed)
            except CheckpointError as error:
                assert "holds no index" in str(error) and not stage.before and not confirmed
        stage.finish(location)
        shutil.rmtree(location)


def test_of_two_writers_one_waits_while_others_read(tmp_path, context):
    stage = Stage(context, "update", tmp_path)
    location = stage.copy("shared")
    index, writers = open_index(location), [stage.start(location) for _ in range(2)]
    reads = 0
    while any(writer.process.is_alive() for writer in writers):
        stage.check(index)
        reads += 1
    assert [writer.end() for writer in writers] == [0, 0] and reads
    assert sorted(len(writer.commits) for writer in writers) == [0, stage.commits]
    stage.finish(location)


def test_a_writer_that_waits_goes_on_when_the_other_one_is_killed(tmp_path, context):
    stage = Stage(context, "update", tmp_path)
    location = stage.copy("shared")
    first = stage.start(location)
    first.wait_for(1)
    second = stage.start(location)
    assert first.end(kill=True) == -9 and second.end() == 0
    stage.check(open_index(location), [*first.commits, *second.commits])
    assert rows_in(open_index(location)) == stage.after
