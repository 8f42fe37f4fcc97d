"""What answers requests: the searcher, the one thread that encodes, and the bounds on how much happens at once."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from modalloy.align.words import can_be_seen
from modalloy.errors import ImageError
from modalloy.search import Answer, Query, Searcher
from modalloy.serve.batching import Batcher
from modalloy.serve.config import ServeConfig
from modalloy.serve.errors import Refusal
from modalloy.serve.facts import facts_of
from modalloy.serve.metrics import Metrics
from modalloy.serve.models import IndexAnswer, WordAnswer, WordsAnswer, WordsBody
from modalloy.serve.pictures import Originals
from modalloy.serve.uploads import Asked, decode_uploads

_log = logging.getLogger(__name__)
_REFRESH_S = 0.5
_PAUSES = 4
"""So many times as long as a look at the index took the next one waits: to read many vectors again takes all cores."""
_SEARCHES = 2
_Result = TypeVar("_Result")


class Service:
    """One searcher, shared by all requests.

    Args:
        searcher: what answers.
        config: how much at once.
    """

    def __init__(self, searcher: Searcher, config: ServeConfig) -> None:
        self.searcher, self.config, self.metrics = searcher, config, Metrics()
        self.originals = Originals(config.max_pixels)
        self.ready = False
        self._pools = {
            name: ThreadPoolExecutor(size, f"modalloy-{name}")
            for name, size in (("encode", 1), ("search", _SEARCHES), ("decode", config.decodes), ("refresh", 1))
        }
        self._running = 0
        self._holding = asyncio.Semaphore(config.decodes)
        self._batcher = Batcher(
            searcher,
            self._pools["encode"],
            self.metrics,
            config.batch,
            config.batch_wait_ms / 1000,
            lambda: self._running,
        )
        self._facts: IndexAnswer | None = None

    @property
    def facts(self) -> IndexAnswer:
        """What there is to search."""
        assert self._facts is not None, "the service hasn't started"
        return self._facts

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers while it lasts; then stops what is still at work, as far as it can be stopped."""
        await self._in("encode", self.searcher.view.warm_up)
        await self._in("refresh", self._look_at_index)
        tasks = [asyncio.create_task(self._batcher.run()), asyncio.create_task(self._stay_current())]
        self.ready = True
        try:
            yield
        finally:
            self.ready = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """A place among the searches under way, for a limited time.

        Raises:
            Refusal: there is none, or the time is over.
        """
        if self._running >= self.config.queue:
            raise self._busy("full", f"{self._running} searches are under way already; ask again in a second.")
        self._running += 1
        self.metrics.queue.set(self._running)
        try:
            async with asyncio.timeout(self.config.timeout_s):
                yield
        except TimeoutError:
            raise self._busy("timeout", f"the search took longer than {self.config.timeout_s:g} s.") from None
        finally:
            self._running -= 1
            self.metrics.queue.set(self._running)

    async def search(self, asked: Asked) -> Answer:
        """Answers a question.

        Raises:
            Refusal: it asks for too much, or a picture can't be decoded.
            ModalloyError: the index or its encoder can't do what it asks for.
        """
        if asked.body.k > self.config.k_most:
            raise Refusal(422, f"k: at most {self.config.k_most} answers can be asked for, got {asked.body.k}.")
        if not asked.uploads:
            return await self._answer(asked.query([]))
        # Decoded pictures are large, so that few searches may hold some, until they are answered.
        async with self._holding:
            pictures = await self._in("decode", lambda: decode_uploads(asked.uploads, self.config.max_pixels))
            return await self._answer(asked.query(pictures))

    async def words(self, asked: WordsBody) -> WordsAnswer:
        """Where the words of a text are found in a picture.

        Raises:
            Refusal: the picture's file isn't the indexed one.
            ModalloyError: there is no such picture, or the encoder can't tell.
        """
        view = self.searcher.view
        try:
            found = await self._in("search", lambda: view.words(asked.id, asked.text))
        # Which says where the file is.
        except ImageError as error:
            raise Refusal(404, f"the file of {asked.id!r} isn't there or isn't the indexed one any more.") from error
        words = [
            WordAnswer(word=each.word, score=each.score, seen=can_be_seen(each.word), weights=each.weights.tolist())
            for each in found.words
        ]
        rows, columns = found.grid
        return WordsAnswer(rows=rows, columns=columns, words=words, encoder=found.encoder)

    def close(self, seconds: float) -> bool:
        """Waits for the threads, and says whether they have ended."""
        waiter = threading.Thread(target=self._end_threads, daemon=True)
        waiter.start()
        waiter.join(seconds)
        return not waiter.is_alive()

    async def _answer(self, query: Query) -> Answer:
        start = time.perf_counter()
        view, vectors = await self._batcher.encode(query.parts)
        encoded = time.perf_counter()
        answer = await self._in("search", lambda: view.answer(query, vectors))
        self.metrics.search_seconds.observe(time.perf_counter() - encoded)
        return replace(answer, milliseconds={"encode": (encoded - start) * 1000, **answer.milliseconds})

    async def _in(self, pool: str, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._pools[pool], work)

    async def _stay_current(self) -> None:
        failing, took = False, 0.0
        while True:
            await asyncio.sleep(max(_REFRESH_S, _PAUSES * took))
            began = time.monotonic()
            try:
                await self._in("refresh", self._look_at_index)
                failing = False
            # Whatever it is, what was there before goes on answering.
            except Exception:
                self.metrics.refresh_failures.inc()
                if not failing:
                    _log.exception("the index can't be looked at; its last state goes on answering")
                failing = True
            took = time.monotonic() - began

    def _look_at_index(self) -> None:
        if self.searcher.refresh() or self._facts is None:
            self._facts = facts = facts_of(self.searcher.view, self.config.k_most)
            self.metrics.version.set(facts.version)
            self.metrics.rows.labels("image").set(facts.pictures)
            self.metrics.rows.labels("text").set(facts.captions)

    def _busy(self, reason: str, message: str) -> Refusal:
        self.metrics.refused.labels(reason).inc()
        return Refusal(503, message, "busy" if reason == "full" else reason, {"Retry-After": "1"})

    def _end_threads(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)
