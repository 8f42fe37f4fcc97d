"""Encodes the questions of searches that come at the same time in one call, in one thread.

While the encoder is at work, the next batch gathers by itself. Besides, the first of a batch waits a little for
searches that have come in but aren't ready to be encoded; a search alone never waits.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from modalloy.search import Part, Searcher, View
from modalloy.serve.metrics import Metrics


class EncodedParts(NamedTuple):
    """What became of a question's parts."""

    view: View
    """The state of the index whose encoder made the vectors, and which answers."""
    vectors: Float[Tensor, "parts dim"]
    """One for each part."""


class _Job(NamedTuple):
    parts: Sequence[Part]
    answer: "asyncio.Future[EncodedParts]"


class Batcher:
    """Gathers parts of questions and encodes them together; each gets the vectors that it would get alone.

    Args:
        searcher: whose view encodes.
        worker: the one thread that encodes.
        metrics: where calls are counted.
        most: parts in a batch, except where one search has more.
        wait_s: how long to wait for others.
        coming: how many searches there are at the moment, encoded or not.
    """

    def __init__(
        self,
        searcher: Searcher,
        worker: ThreadPoolExecutor,
        metrics: Metrics,
        most: int,
        wait_s: float,
        coming: Callable[[], int],
    ) -> None:
        self._searcher, self._worker, self._metrics = searcher, worker, metrics
        self._most, self._wait_s, self._coming = most, wait_s, coming
        self._waiting: asyncio.Queue[_Job] = asyncio.Queue()

    async def encode(self, parts: Sequence[Part]) -> EncodedParts:
        """A vector for each part, by way of the next batch; what fails for these parts is raised here."""
        job = _Job(parts, asyncio.get_running_loop().create_future())
        self._waiting.put_nowait(job)
        return await job.answer

    async def run(self) -> None:
        """Encodes batch after batch until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            # Whoever gave up meanwhile isn't encoded for.
            jobs = [job for job in await self._collect() if not job.answer.done()]
            if not jobs:
                continue
            answers = await loop.run_in_executor(self._worker, self._encode_all, [job.parts for job in jobs])
            for job, answer in zip(jobs, answers, strict=True):
                if job.answer.done():
                    continue
                if isinstance(answer, Exception):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)

    async def _collect(self) -> list[_Job]:
        jobs = [await self._waiting.get()]
        end = time.monotonic() + self._wait_s
        while sum(len(job.parts) for job in jobs) < self._most:
            if self._waiting.empty() and len(jobs) >= self._coming():
                break
            try:
                async with asyncio.timeout(max(0.0, end - time.monotonic())):
                    jobs.append(await self._waiting.get())
            except TimeoutError:
                break
        return jobs

    def _encode_all(self, questions: list[Sequence[Part]]) -> list[EncodedParts | Exception]:
        view, start = self._searcher.view, time.perf_counter()
        try:
            vectors = view.encode([part for parts in questions for part in parts])
        except Exception as error:
            # One bad question mustn't spoil the others'.
            return [error] if len(questions) == 1 else [self._encode_all([parts])[0] for parts in questions]
        self._metrics.encode_seconds.observe(time.perf_counter() - start)
        self._metrics.encode_batch.observe(len(questions))
        return [EncodedParts(view, each) for each in vectors.split([len(parts) for parts in questions])]
