"""From a collection to stored features, in this process, in one a device, or on several machines."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Literal, get_args

from modalloy.data.manifest import Manifest
from modalloy.encoders.base import Encoder, Modality
from modalloy.errors import ConfigError
from modalloy.features.assembly import Rejection, encode
from modalloy.features.devices import make_shards_on, require_devices
from modalloy.features.lock import only_writer
from modalloy.features.pipeline import Job, Timing, make_shards
from modalloy.features.preparation import Preparation
from modalloy.features.ray_data import make_shards_with_ray, require_ray
from modalloy.features.shard import Reject
from modalloy.features.sources import Source, source_of
from modalloy.features.store import FeatureStore
from modalloy.features.store_manifest import Description
from modalloy.features.writer import StoreWriter, finished_store, shard_ranges
from modalloy.progress import progress_bar

_log = logging.getLogger(__name__)

Runner = Literal["local", "ray"]
SHARD_SIZE = 256
"""Items of a shard."""


def extract(
    encoder: Encoder,
    modality: Modality,
    manifest: Manifest,
    folder: str | Path,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    processes: bool = False,
    devices: Sequence[str] = (),
    runner: Runner = "local",
    shard_size: int = SHARD_SIZE,
    progress: bool = True,
    source: Source | None = None,
    label: str | None = None,
) -> FeatureStore:
    """Stores an encoder's features of every image, or every caption, of a collection.

    What `folder` already holds of them is kept: a finished store is opened, an interrupted run goes on, and
    after a change of the collection only the shards that changed are made again. An item that can't be
    encoded keeps its row, without features, and is listed in rejects.jsonl; where one can be encoded when the
    store is asked for again, as after its picture was put back, its shard is made again. Besides the manifest, memory
    holds some batches and at most three shards' features (being gathered, joined and written).

    Args:
        batch_size: items per forward pass.
        workers: threads that decode and preprocess, of each device (default: one a core, at most 4).
        processes: processes instead of these threads: where the model encodes more items a second than one
            Python interpreter can hand on, as on a fast accelerator.
        devices: where the encoder runs; of several each has a process, which builds the encoder by its spec.
            Default: where it is.
        runner: "local" is this machine; "ray" is the cluster that Ray finds, each of whose machines must see
            the collection and `folder` under the same path; there an encoder has an accelerator of Ray's choice,
            if there is one, instead of `devices`.
        shard_size: items per file.
        progress: shows a bar with the time left on stderr.
        source: the rows, where they aren't the collection's images or captions as they are.
        label: what the bar and the log call it (default: the encoder's spec and the modality).

    Raises:
        ConfigError: an option is out of range, the encoder doesn't encode `modality`, a process of its own
            can't build it, or Ray isn't installed.
        FeatureError: the folder holds another encoder's features, another extraction writes to it, the encoder
            breaks its contract, the disk is full, or a process was killed.

    >>> import tempfile
    >>> from modalloy.data.manifest import Item, Manifest
    >>> from modalloy.encoders.registry import load_encoder
    >>> item = Item("phone", "phone.png", "0" * 64, "test", ("a red telephone", "an old phone"))
    >>> collection, folder = Manifest(Path(tempfile.gettempdir()), (item,)), tempfile.mkdtemp()
    >>> store = extract(load_encoder("minilm"), "text", collection, folder, progress=False)
    >>> list(store.ids), tuple(store.embeddings().shape)
    (['phone#0', 'phone#1'], (2, 384))
    """
    workers = max(1, min(4, (os.cpu_count() or 1) // max(1, len(devices)))) if workers is None else workers
    _check(encoder, modality, batch_size, workers, runner)
    require_devices(devices)
    folder, source = Path(folder), source_of(manifest, modality) if source is None else source
    description = describe(encoder, modality, source)
    ranges = shard_ranges(len(source), shard_size)
    store = finished_store(folder, description)
    if store is not None and not _mended(
        encoder, modality, source, [Reject(**each) for each in store.rejects()], store.shard_size
    ):
        _warn_of_rejects(folder, len(store.rejects()), len(store))
        return store
    if runner == "ray":
        require_ray()
    label = f"{encoder.spec} {modality}" if label is None else label
    with only_writer(folder):
        items = tuple(source.digest(rows) for rows in ranges)
        # Absolute, as a process on another machine works elsewhere.
        job = Job(folder.absolute(), description, source, shard_size, items, batch_size, workers, processes)
        writer = StoreWriter(folder, description, source.ids, shard_size, items)
        writer.make_again(_mended(encoder, modality, source, writer.rejects, shard_size))
        missing, start = writer.missing, perf_counter()
        with _bar(label, ranges, missing, progress) as advance:
            timings = _run(runner, devices, encoder, job, missing, advance)
        writer.take_over()
        store = writer.finish()
    if missing:
        rows = sum(len(ranges[index]) for index in missing)
        _log.info("%s: %s", label, throughput(rows, perf_counter() - start, timings))
    _warn_of_rejects(folder, len(store.rejects()), len(store))
    return store


def describe(encoder: Encoder, modality: Modality, source: Source) -> Description:
    """What an encoder's features of `source` are."""
    return Description(
        spec=encoder.spec,
        modality=modality,
        fingerprint=encoder.fingerprint(modality),
        dim=encoder.dim(modality),
        width=encoder.width(modality),
        collection=source.digest(),
    )


def throughput(items: int, seconds: float, timings: Sequence[Timing]) -> str:
    """One line on how fast it went, and which side was the slower: the model or what feeds it.

    >>> throughput(2758, 3.1, [Timing(seconds=3.0, waited=0.12)])
    '2,758 items in 3.1 s (890/s; the model waited 4% of it for its input)'
    """
    share = sum(each.waited for each in timings) / max(sum(each.seconds for each in timings), 1e-9)
    speed = f"{items / max(seconds, 1e-9):,.0f}/s"
    return f"{items:,} items in {seconds:,.1f} s ({speed}; the model waited {share:.0%} of it for its input)"


def _mended(
    encoder: Encoder, modality: Modality, source: Source, rejects: Iterable[Reject], shard_size: int
) -> set[int]:
    """The shards with an item that was rejected, but can be encoded now."""
    prepare, mended = Preparation(encoder, modality, source), set[int]()
    for reject in rejects:
        if reject.row // shard_size not in mended:
            prepared = prepare(reject.row)
            # Run through the model too: one that it rejects itself would be made again for ever.
            if not isinstance(prepared, Rejection) and not isinstance(
                encode(encoder, modality, [prepared])[0], Rejection
            ):
                mended.add(reject.row // shard_size)
    return mended


@cache
def _warn_of_rejects(folder: Path, rejected: int, rows: int) -> None:
    # A run asks for the same store several times; it's said once.
    if rejected:
        _log.warning("%s: %d of %d items rejected, see rejects.jsonl", folder, rejected, rows)


def _run(
    runner: Runner,
    devices: Sequence[str],
    encoder: Encoder,
    job: Job,
    missing: Sequence[int],
    advance: Callable[[int], None],
) -> list[Timing]:
    # A process takes seconds to start, so that none starts without a shard to make.
    devices = devices[: len(missing)]
    if not missing:
        return []
    if runner == "ray":
        return make_shards_with_ray(job, missing, advance)
    if len(devices) > 1:
        return make_shards_on(devices, job, missing, advance)
    with placed(encoder, devices):
        return [make_shards(encoder, job, missing, advance)]


@contextmanager
def placed(encoder: Encoder, devices: Sequence[str]) -> Iterator[None]:
    """Has the encoder on the first of `devices`, if there is one, and back where it was afterwards."""
    before = encoder.device
    if devices:
        encoder.to(devices[0])
    try:
        yield
    finally:
        if devices:
            encoder.to(before)


def _check(encoder: Encoder, modality: Modality, batch_size: int, workers: int, runner: Runner) -> None:
    if runner not in get_args(Runner):
        raise ConfigError(f"runner must be one of {', '.join(get_args(Runner))}, got {runner!r}.")
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
