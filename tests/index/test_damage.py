"""Files of an index that a disk or a network has damaged: it answers as before, or says which index is broken."""

import os
import random
import shutil
from pathlib import Path

import pytest
from toy_index import toy_head, toy_rows, unit_vectors

from modalloy.errors import CheckpointError
from modalloy.index import Condition
from modalloy.index.lance import LanceIndex
from modalloy.index.verify import verify_index

KINDS = {
    "head's data": "head.lance/data/*",
    "head's versions": "head.lance/_versions/*.manifest",
    "data": "items_*/data/*",
    "versions": "items_*/_versions/*.manifest",
    "version hints": "*/_versions/*.json",
    "transactions": "*/_transactions/*",
    "deletions": "items_*/_deletions/*",
    "graphs": "items_*/_indices/*/*",
}


def _delete(content: bytes, drawn: random.Random) -> None:
    return None


def _empty(content: bytes, drawn: random.Random) -> bytes:
    return b""


def _cut(content: bytes, drawn: random.Random) -> bytes:
    return content[: drawn.randrange(len(content))]


def _overwrite(content: bytes, drawn: random.Random) -> bytes:
    return drawn.randbytes(len(content))


def _flip(content: bytes, drawn: random.Random) -> bytes:
    flipped = bytearray(content)
    for _ in range(3):
        flipped[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
    return bytes(flipped)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An index with all kinds of files."""
    location = tmp_path_factory.mktemp("whole") / "index"
    index = LanceIndex.create(location, toy_head(), exact_up_to=10)
    for start in (0, 30):
        ids = [f"p{place}" for place in range(start, start + 30)]
        index.commit(toy_rows(ids, unit_vectors(30, seed=start), unit_vectors(30, seed=start + 1)))
    index.optimize()
    index.commit(removed=["p1", "p1#0"])
    return location


def calls(location: Path) -> list:
    """What an index is asked, in an order in which each is a question to the files."""

    def opened() -> LanceIndex:
        return LanceIndex.open(location, exact_up_to=10)

    query = unit_vectors(1, seed=99)
    return [
        lambda: opened().head,
        lambda: opened().snapshot().count(),
        lambda: opened().snapshot().count([Condition("path", "contains", "p2")]),
        lambda: sorted(id for batch in opened().snapshot().scan(["id"]) for id in batch["id"].to_pylist()),
        lambda: opened().snapshot().rows(["p40", "p3#0"], ["id", "captions", "thumbnail", "image_vector"]).to_pylist(),
        lambda: opened().snapshot().search("image", query, 5, exact=True)[0].ids,
        lambda: sorted(opened().snapshot().search("text", query, 5)[0].ids),
        lambda: opened().snapshot().metadata,
    ]


def changes(location: Path) -> list:
    """What is done to an index."""
    index = LanceIndex.open(location, exact_up_to=10)
    return [
        lambda: index.commit(toy_rows(["new"], unit_vectors(1))),
        lambda: index.commit(removed=["p7", "p7#0"]),
        lambda: index.begin(toy_head("1")).commit(toy_rows(["new"], unit_vectors(1))),
        index.optimize,
        lambda: verify_index(index),
    ]


def attempted(call, location: Path):
    """Its answer, or the error that an index may give."""
    try:
        return call()
    except CheckpointError as error:
        assert str(location) in str(error) and "\n" not in str(error)
        assert "modalloy index build" in str(error), error
        return CheckpointError


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [_delete, _empty, _cut, _overwrite, _flip])
def test_damaged_files_give_the_same_answers_or_a_clear_error(tmp_path, whole, kind, damage):
    expected = [call() for call in calls(whole)]
    for seed in range(2 if damage in (_cut, _flip) else 1):
        print("seed", seed)
        drawn, location = random.Random(seed), tmp_path / f"{seed}"
        shutil.copytree(whole, location)
        files = sorted(location.glob(KINDS[kind]))
        assert files
        for file in files:
            content = damage(file.read_bytes(), drawn)
            os.remove(file) if content is None else file.write_bytes(content)
        for call, right in zip(calls(location), expected, strict=True):
            answer = attempted(call, location)
            # What is flipped within texts and vectors can't be told from what was meant.
            assert answer in (CheckpointError, right) or (damage is _flip and kind in ("data", "graphs")), answer
        if attempted(lambda where=location: LanceIndex.open(where), location) is not CheckpointError:
            for change in changes(location):
                attempted(change, location)
