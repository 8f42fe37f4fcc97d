import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modalloy import search
from modalloy.errors import DataError
from modalloy.search import Part
from modalloy.serve.batching import Batcher
from modalloy.serve.metrics import Metrics


class View(search.View):
    """Encodes a text as its length; knows no "bad" ones."""

    def __init__(self):
        self.calls = []

    def encode(self, parts):
        self.calls.append([part.text for part in parts])
        if any(part.text == "bad" for part in parts):
            raise DataError("bad")
        return torch.tensor([[float(len(part.text)), part.weight] for part in parts])


class Searcher(search.Searcher):
    def __init__(self):
        self._view = View()


def run(questions, most=16, wait_s=5.0, coming=None, given_up=()):
    """What becomes of questions that come at the same time, and the batches that they went by."""
    searcher, metrics = Searcher(), Metrics()
    waiting = len(questions)

    async def answers():
        with ThreadPoolExecutor(1) as worker:
            batcher = Batcher(searcher, worker, metrics, most, wait_s, coming or (lambda: waiting))
            tasks = [asyncio.create_task(batcher.encode([Part(text=text) for text in texts])) for texts in questions]
            await asyncio.sleep(0)
            for number in given_up:
                tasks[number].cancel()
            runner = asyncio.create_task(batcher.run())
            found = await asyncio.gather(*tasks, return_exceptions=True)
            runner.cancel()
            return found

    return asyncio.run(answers()), searcher.view, metrics


TEXTS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=10)
@given(st.lists(TEXTS, min_size=1, max_size=8), st.integers(1, 9))
def test_each_gets_what_it_would_get_alone(questions, most):
    found, view, _ = run(questions, most, wait_s=0.0)
    for texts, (by, vectors) in zip(questions, found, strict=True):
        assert by is view and torch.equal(vectors, view.encode([Part(text=text) for text in texts]))


def test_what_comes_together_is_encoded_together():
    _, view, metrics = run([["a"], ["b", "c"], ["d"]])
    assert view.calls == [["a", "b", "c", "d"]]
    assert "modalloy_encode_batch_sum 3.0" in metrics.text().decode()


def test_a_batch_ends_when_it_is_full():
    _, view, _ = run([["a"], ["b"], ["c", "d"], ["e"]], most=3, wait_s=0.0)
    assert view.calls == [["a", "b", "c", "d"], ["e"]]


def test_one_alone_does_not_wait():
    _, view, _ = run([["a"]], wait_s=1e6)
    assert view.calls == [["a"]]


def test_the_wait_for_others_ends():
    _, view, _ = run([["a"]], wait_s=0.01, coming=lambda: 5)
    assert view.calls == [["a"]]


def test_a_bad_question_fails_alone():
    found, _, _ = run([["a"], ["bad"], ["ccc"]])
    assert found[0].vectors[0, 0] == 1 and found[2].vectors[0, 0] == 3
    with pytest.raises(DataError, match="bad"):
        raise found[1]


def test_whoever_gave_up_is_not_encoded_for():
    found, view, _ = run([["a"], ["b"]], given_up=[0])
    assert isinstance(found[0], asyncio.CancelledError) and view.calls == [["b"]]


def test_whoever_gives_up_while_it_is_encoded_stops_nobody_else():
    searcher, begun, held = Searcher(), threading.Event(), threading.Event()
    encode = searcher.view.encode

    def slow(parts):
        begun.set()
        assert held.wait(20)
        return encode(parts)

    searcher.view.encode = slow

    async def answers():
        with ThreadPoolExecutor(1) as worker:
            batcher = Batcher(searcher, worker, Metrics(), 16, 0.0, lambda: 1)
            runner = asyncio.create_task(batcher.run())
            first = asyncio.create_task(batcher.encode([Part(text="a")]))
            while not begun.is_set():
                await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait([first])
            held.set()
            found = await asyncio.wait_for(batcher.encode([Part(text="bb")]), 20)
            runner.cancel()
            return found

    assert asyncio.run(answers()).vectors[0, 0] == 2 and searcher.view.calls == [["a"], ["bb"]]


def test_the_first_waits_for_one_who_is_on_the_way():
    searcher = Searcher()

    async def answers():
        with ThreadPoolExecutor(1) as worker:
            batcher = Batcher(searcher, worker, Metrics(), 16, 20.0, lambda: 2)
            runner = asyncio.create_task(batcher.run())
            first = asyncio.create_task(batcher.encode([Part(text="a")]))
            for _ in range(20):
                await asyncio.sleep(0)
            await asyncio.gather(first, batcher.encode([Part(text="b")]))
            runner.cancel()

    asyncio.run(answers())
    assert searcher.view.calls == [["a", "b"]]
