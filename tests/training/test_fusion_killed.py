"""A fit killed with SIGKILL at moments that nothing foresees ends with the bits of one that ran through."""

import dataclasses
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from fit_process import fit_and_tell
from toy_pairs import SPLITS, TRAINING, collection, features

EPOCHS, STEPS_AN_EPOCH, KILLS = 6, 8, 6
SETTINGS = {
    "plain": {},
    "everything": {
        **{"accumulate": 3, "precision": "bf16", "gradient_clip": 1.0, "schedule": "restarts", "warmup": 0.1},
        **{"captions_per_image": 2, "batch_size": 12, "averaged": True, "chunk_size": 5},
        "matching_negatives": "sampled",
    },
}


def run(context, told_of: int | None, delay: float, *arguments) -> int:
    """A fit in a process of its own, killed `delay` seconds after it has told of so many steps; its exit status."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=fit_and_tell, args=(theirs, *arguments))
    process.start()
    theirs.close()
    _wait_for(ours, told_of)
    if told_of is not None:
        time.sleep(delay)
        process.kill()
    process.join()
    return process.exitcode


def _wait_for(steps: Connection, count: int | None) -> None:
    seen = 0
    try:
        while count is None or seen < count:
            steps.recv()
            seen += 1
    except EOFError:
        pass  # The fit has ended.


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_killed_again_and_again_it_ends_with_the_same_bits(tmp_path, monkeypatch, name):
    manifest = collection(tmp_path / "pictures", SPLITS)
    features(manifest, tmp_path / "features")
    manifest.save(tmp_path / "manifest.jsonl")
    training = dataclasses.replace(TRAINING, epochs=EPOCHS, patience=EPOCHS, **{"batch_size": 6, **SETTINGS[name]})
    # Processes forked of one that has imported everything start at once; it knows this process's path by the
    # environment alone.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fit_process"])
    assert run(context, None, 0, tmp_path, tmp_path / "whole", training) == 0
    drawn, killed, alive = random.Random(0), 0, True
    while alive:
        # Some within an epoch, some about its end, while the checkpoint is written.
        steps = drawn.choice([drawn.randint(1, STEPS_AN_EPOCH - 1), STEPS_AN_EPOCH, STEPS_AN_EPOCH + 2])
        told_of = steps if killed < KILLS else None
        status = run(context, told_of, drawn.uniform(0, 0.02), tmp_path, tmp_path / "killed", training)
        assert status in (0, -signal.SIGKILL)
        killed += status != 0
        alive = status != 0
    assert killed == KILLS
    for file in ("model.safetensors", "metrics.jsonl", "fit.json"):
        assert _bytes(tmp_path / "killed" / file) == _bytes(tmp_path / "whole" / file)
    assert not list((tmp_path / "killed").glob("**/.partial-*"))


def _bytes(path: Path) -> bytes:
    return path.read_bytes()
