"""Rows made ready for an encoder, in order and a bounded number ahead: by threads or by processes.

Threads cost nothing to start, and suffice while the model is slower than one core's interpreter: Pillow and the
tokenizers release its lock for most of their work. Processes have an interpreter each.
"""

import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modalloy.encoders.base import Encoder, Modality, Prepared
from modalloy.errors import CheckpointError, FeatureError, ModalloyError, one_line
from modalloy.features.assembly import Rejection
from modalloy.features.sources import Source

Result = TypeVar("Result")

_CHUNK = 8  # rows that a process prepares at a time


class UnexpectedRejection(Rejection):
    """A rejection by an exception that isn't one of modalloy's own."""


class Preparation(Dataset[list[Prepared | Rejection] | Tensor]):
    """Loads and preprocesses rows; a row that can't be gives a rejection in its place."""

    def __init__(self, encoder: Encoder, modality: Modality, source: Source) -> None:
        self._encoder = encoder
        self._modality = modality
        self._source = source

    def __call__(self, row: int) -> Prepared | Rejection:
        """One row."""
        try:
            return self._encoder.preprocess(self._modality, self._source.load(row))
        except ModalloyError as error:
            return Rejection(str(error))
        except MemoryError:
            raise
        except Exception as error:
            return UnexpectedRejection(f"{type(error).__name__}: {error}")

    def __getitem__(self, rows: list[int]) -> list[Prepared | Rejection] | Tensor:
        """Several rows, in one tensor where they can be: each tensor takes a file descriptor between processes."""
        items = [self(row) for row in rows]
        tensors = [item for item in items if isinstance(item, Tensor)]
        alike = len({(item.shape, item.dtype) for item in tensors}) == 1
        return torch.stack(tensors) if alike and len(tensors) == len(items) else items


def without_bugs(batch: list[Prepared | Rejection]) -> list[Prepared | Rejection]:
    """Refuses a batch of which every item failed unexpectedly: that is the encoder's fault."""
    if len(batch) > 1 and all(isinstance(item, UnexpectedRejection) for item in batch):
        raise FeatureError(
            f"The encoder's preprocess failed on all {len(batch)} items of a batch, first with: "
            f"{batch[0].reason}. Mend the encoder."  # type: ignore[union-attr]
        )
    return batch


def by_threads(
    prepare: Callable[[int], Result], rows: Iterator[int], workers: int, ahead: int
) -> Generator[Result, None, None]:
    """Prepares rows in threads, with at most `ahead` of them begun and not yet taken."""
    with ThreadPoolExecutor(workers, "modalloy-prepare") as pool:
        waiting = deque(pool.submit(prepare, row) for row in islice(rows, ahead))
        try:
            while waiting:
                item = waiting.popleft().result()
                waiting.extend(pool.submit(prepare, row) for row in islice(rows, 1))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)


def by_processes(
    prepare: Preparation, rows: Iterator[int], workers: int, ahead: int
) -> Generator[Prepared | Rejection, None, None]:
    """Prepares rows in processes, with at most `ahead`, or two chunks a worker, begun and not yet taken."""
    for chunk in ReadingLoader(prepare, _Chunks(rows), workers, max(2, ahead // (workers * _CHUNK))):
        yield from chunk


class ReadingLoader(DataLoader):
    """What a dataset gives for each thing that a sampler draws, in order, whatever the number of processes.

    Args:
        dataset: is asked in the processes; a tensor that it gives takes a file descriptor.
        sampler: is asked in this one.
        workers: how many processes; 0 for none besides this one.
        ahead: things that each may be ahead by.
    """

    def __init__(self, dataset: Any, sampler: Any, workers: int, ahead: int = 2) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            collate_fn=_as_they_are,
            # A forked process has the encoder and the collection already; elsewhere they are pickled.
            multiprocessing_context=("fork" if sys.platform == "linux" else "spawn") if workers else None,
            # Of its own, so that the caller's random numbers stay what they are.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Any:
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork beside other threads; these processes touch nothing that a thread may hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            return super().__iter__()


@contextmanager
def explained_death(remedy: str = "with fewer workers or with threads (processes: false)") -> Iterator[None]:
    """Says what to do where a process of a `ReadingLoader` was killed; torch may notice it at any moment.

    Args:
        remedy: how the same step may fare better.

    Raises:
        FeatureError: one was.
    """
    try:
        yield
    except CheckpointError:
        # Of a cut file the cause is an EOFError, too.
        raise
    except Exception as error:
        death = _death_behind(error)
        if death is None:
            raise
        raise FeatureError(
            f"A process that decodes was killed ({one_line(death)}), perhaps for want of memory. Run the same step "
            f"again, {remedy}: it goes on where it stopped."
        ) from error


def _death_behind(error: BaseException | None) -> BaseException | None:
    """The error of torch's signal handler, which whatever it interrupted may have wrapped; or of a cut connection."""
    while error is not None and "DataLoader worker (pid" not in str(error):
        if isinstance(error, ConnectionResetError | EOFError):
            return error
        error = error.__context__
    return error


class _Chunks:
    """The rows in lists; drawn as processes ask for more."""

    def __init__(self, rows: Iterator[int]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[list[int]]:
        return iter(lambda: list(islice(self._rows, _CHUNK)), [])


def _as_they_are(items: Any) -> Any:
    return items
