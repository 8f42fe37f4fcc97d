"""From a collection to stored features: worker threads decode, this one runs the model, another writes.

Batches end at a shard's end, so a shard's bytes don't depend on where a run was interrupted.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

from modalloy.data.manifest import Manifest
from modalloy.encoders.base import Encoder, Modality, Prepared
from modalloy.errors import ConfigError, FeatureError, ModalloyError
from modalloy.features.assembly import Features, Rejection, assemble, encode
from modalloy.features.shard import Reject
from modalloy.features.sources import Source, source_of
from modalloy.features.store import FeatureStore
from modalloy.features.store_manifest import Description
from modalloy.features.writer import StoreWriter, finished_store, shard_ranges
from modalloy.progress import progress_bar

_log = logging.getLogger(__name__)


def extract(
    encoder: Encoder,
    modality: Modality,
    manifest: Manifest,
    folder: str | Path,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    shard_size: int = 256,
    progress: bool = True,
) -> FeatureStore:
    """Stores an encoder's features of every image, or every caption, of a collection.

    What `folder` already holds of them is kept: a finished store is opened, an interrupted run goes on, and
    after a change of the collection only the shards that changed are made again. An item that can't be
    encoded keeps its row, without features, and is listed in rejects.jsonl. Besides the manifest, memory
    holds some batches and at most three shards' features (being gathered, joined and written).

    Args:
        batch_size: items per forward pass.
        workers: threads that decode and preprocess (default: one a core, at most 4).
        shard_size: items per file.
        progress: shows a bar with the time left on stderr.

    Raises:
        ConfigError: an option is out of range, or the encoder doesn't encode `modality`.
        FeatureError: the folder holds another encoder's features, or the encoder breaks its contract.

    >>> import tempfile
    >>> from modalloy.data.manifest import Item, Manifest
    >>> from modalloy.encoders.registry import load_encoder
    >>> item = Item("phone", "phone.png", "0" * 64, "test", ("a red telephone", "an old phone"))
    >>> collection, folder = Manifest(Path(tempfile.gettempdir()), (item,)), tempfile.mkdtemp()
    >>> store = extract(load_encoder("minilm"), "text", collection, folder, progress=False)
    >>> list(store.ids), tuple(store.embeddings().shape)
    (['phone#0', 'phone#1'], (2, 384))
    """
    workers = min(4, os.cpu_count() or 1) if workers is None else workers
    _check(encoder, modality, batch_size, workers)
    folder, source = Path(folder), source_of(manifest, modality)
    ranges = shard_ranges(len(source), shard_size)
    description = Description(
        spec=encoder.spec,
        modality=modality,
        fingerprint=encoder.fingerprint(modality),
        dim=encoder.dim(modality),
        width=encoder.width(modality),
        collection=source.digest(),
    )
    store = finished_store(folder, description)
    if store is not None:
        return store
    writer = StoreWriter(folder, description, source.ids, shard_size, [source.digest(rows) for rows in ranges])
    with _bar(f"{encoder.spec} {modality}", ranges, writer.missing, progress) as advance:
        _fill(writer, encoder, modality, source, ranges, batch_size, workers, advance)
    store = writer.finish()
    if store.rejects():
        _log.warning("%s: %d of %d items rejected, see rejects.jsonl", folder, len(store.rejects()), len(store))
    return store


def _fill(
    writer: StoreWriter,
    encoder: Encoder,
    modality: Modality,
    source: Source,
    ranges: Sequence[range],
    batch_size: int,
    workers: int,
    advance: Callable[[int], None],
) -> None:
    missing = writer.missing
    dim, width = encoder.dim(modality), encoder.width(modality)
    items = _prepared(
        lambda row: encoder.preprocess(modality, source.load(row)),
        (row for index in missing for row in ranges[index]),
        workers,
        ahead=batch_size + workers,
    )
    with ThreadPoolExecutor(1, "modalloy-write") as disk, closing(items):
        writing: Future[None] | None = None
        for index in missing:
            rows = ranges[index]
            features: list[Features | Rejection] = []
            while len(features) < len(rows):
                batch = _without_bugs(list(islice(items, min(batch_size, len(rows) - len(features)))))
                features += encode(encoder, modality, batch)
                advance(len(batch))
            rejects = [
                Reject(row, source.ids[row], source.path(row), answer.reason)
                for row, answer in zip(rows, features, strict=True)
                if isinstance(answer, Rejection)
            ]
            if writing is not None:
                writing.result()
            writing = disk.submit(writer.write, index, assemble(features, dim, width), rejects)
        if writing is not None:
            writing.result()


class _Unexpected(Rejection):
    """A rejection by an exception that isn't one of modalloy's own."""


def _prepared(
    prepare: Callable[[int], Prepared], rows: Iterator[int], workers: int, ahead: int
) -> Generator[Prepared | Rejection, None, None]:
    """Prepares rows in worker threads, in order, with at most `ahead` of them begun and not yet taken."""

    def attempt(row: int) -> Prepared | Rejection:
        try:
            return prepare(row)
        except ModalloyError as error:
            return Rejection(str(error))
        except MemoryError:
            raise
        except Exception as error:
            return _Unexpected(f"{type(error).__name__}: {error}")

    with ThreadPoolExecutor(workers, "modalloy-prepare") as pool:
        waiting = deque(pool.submit(attempt, row) for row in islice(rows, ahead))
        try:
            while waiting:
                item = waiting.popleft().result()
                waiting.extend(pool.submit(attempt, row) for row in islice(rows, 1))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)


def _without_bugs(batch: list[Prepared | Rejection]) -> list[Prepared | Rejection]:
    """Refuses a batch of which every item failed unexpectedly: that is the encoder's fault."""
    if len(batch) > 1 and all(isinstance(item, _Unexpected) for item in batch):
        raise FeatureError(
            f"The encoder's preprocess failed on all {len(batch)} items of a batch, first with: "
            f"{batch[0].reason}. Mend the encoder."  # type: ignore[union-attr]
        )
    return batch


def _check(encoder: Encoder, modality: Modality, batch_size: int, workers: int) -> None:
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}.")
    if modality not in encoder.modalities:
        raise ConfigError(f"{encoder.spec} encodes {' and '.join(encoder.modalities)}, not {modality}.")


@contextmanager
def _bar(
    description: str, ranges: Sequence[range], missing: Sequence[int], shown: bool
) -> Iterator[Callable[[int], None]]:
    """A bar over all rows that starts at those already stored; gives what advances it."""
    if not shown:
        yield lambda rows: None
        return
    total, left = sum(map(len, ranges)), sum(len(ranges[index]) for index in missing)
    with progress_bar() as bar:
        task = bar.add_task(description, total=total, completed=total - left)
        yield lambda rows: bar.advance(task, rows)
