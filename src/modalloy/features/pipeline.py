"""A store's missing shards, made in one process: workers decode, this thread runs the model, another one writes.

Batches end at a shard's end, so a shard's bytes don't depend on where a run was interrupted or who made it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, tee
from pathlib import Path
from time import perf_counter

from modalloy.encoders.base import Encoder
from modalloy.encoders.registry import load_encoder
from modalloy.errors import ConfigError
from modalloy.features.assembly import Features, Rejection, assemble, encode
from modalloy.features.preparation import (
    Preparation,
    by_processes,
    by_threads,
    explained_death,
    without_bugs,
)
from modalloy.features.shard import Reject
from modalloy.features.sources import Source
from modalloy.features.store_manifest import Description
from modalloy.features.writer import ShardWriter, shard_ranges


@dataclass(frozen=True)
class Job:
    """The making of a store's shards: all that a process needs besides the encoder."""

    folder: Path
    description: Description
    source: Source
    shard_size: int
    items: tuple[str, ...]
    """For each shard the digest of what its rows are made from."""
    batch_size: int
    workers: int
    processes: bool
    """Whether the workers are processes, not threads."""

    def load_encoder(self) -> Encoder:
        """The encoder, built by its spec in a process that doesn't have it.

        Raises:
            ConfigError: the spec builds another encoder, or none.
        """
        encoder = load_encoder(self.description.spec)
        if encoder.fingerprint(self.description.modality) != self.description.fingerprint:
            raise ConfigError(
                f"{self.description.spec} builds another encoder in a worker process than the one given, whose "
                "features are wanted; extract on one device, or give it a spec that says all of its options."
            )
        return encoder


@dataclass(frozen=True)
class Timing:
    """How long a process worked, and how much of that its model waited for input."""

    seconds: float
    waited: float


def make_shards(encoder: Encoder, job: Job, indices: Iterable[int], advance: Callable[[int], None]) -> Timing:
    """Makes and writes the shards numbered `indices`, which are drawn as far ahead as rows are prepared.

    Args:
        advance: told of each batch how many rows it had.

    Raises:
        FeatureError: the encoder breaks its contract, a decoding process died, or the disk is full.
    """
    modality, ranges = job.description.modality, shard_ranges(len(job.source), job.shard_size)
    writer = ShardWriter(job.folder, job.description.fingerprint, job.items)
    to_prepare, to_make = tee(indices)
    by_workers = by_processes if job.processes else by_threads
    items = by_workers(
        Preparation(encoder, modality, job.source),
        (row for index in to_prepare for row in ranges[index]),
        job.workers,
        ahead=job.batch_size + job.workers,
    )
    start, waited = perf_counter(), 0.0
    with explained_death(), closing(items), ThreadPoolExecutor(1, "modalloy-write") as disk:
        writing: Future[object] | None = None
        for index in to_make:
            rows = ranges[index]
            features: list[Features | Rejection] = []
            while len(features) < len(rows):
                asked = perf_counter()
                batch = list(islice(items, min(job.batch_size, len(rows) - len(features))))
                waited += perf_counter() - asked
                features += encode(encoder, modality, without_bugs(batch))
                advance(len(batch))
            if writing is not None:
                writing.result()
            shard = assemble(features, job.description.dim, job.description.width)
            writing = disk.submit(writer.write, index, shard, _rejects(job.source, rows, features))
        if writing is not None:
            writing.result()
    return Timing(perf_counter() - start, waited)


def _rejects(source: Source, rows: range, features: Sequence[Features | Rejection]) -> list[Reject]:
    return [
        Reject(row, source.ids[row], source.path(row), answer.reason)
        for row, answer in zip(rows, features, strict=True)
        if isinstance(answer, Rejection)
    ]


def in_turn(indices: Sequence[int], draw: Callable[[], int]) -> Iterator[int]:
    """Those of `indices` whose places `draw` gives, until it gives one beyond the last."""
    while (place := draw()) < len(indices):
        yield indices[place]
