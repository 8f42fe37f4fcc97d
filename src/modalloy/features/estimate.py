"""What an extraction will take, before it starts: disk and time, from a sample spread over the missing rows."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import perf_counter

from modalloy.encoders.base import Encoder, Modality
from modalloy.errors import ConfigError, FeatureError
from modalloy.features.assembly import Rejection, encode
from modalloy.features.extract import SHARD_SIZE, describe
from modalloy.features.preparation import Preparation
from modalloy.features.sources import Source
from modalloy.features.store import FeatureStore
from modalloy.features.store_manifest import Description
from modalloy.features.writer import ShardWriter, finished_store, shard_ranges

_HEADER_BYTES = 1200  # of a shard, with its record in the manifest
_ROW_BYTES = 1 + 8  # a row's validity and offset


@dataclass(frozen=True)
class Estimate:
    """What it takes to finish a store."""

    rows: int
    stored: int
    """Rows that are there already."""
    bytes: int
    """Disk still to be taken."""
    seconds: float
    """Time of one device, wide of the mark by half or more where the machine's load changes."""


def estimate(
    encoder: Encoder,
    modality: Modality,
    source: Source,
    folder: str | Path,
    *,
    workers: int = 1,
    shard_size: int = SHARD_SIZE,
    sample: int = 16,
) -> Estimate:
    """Estimates what `extract` will take, and writes nothing.

    The sample's token counts stand for all, so the disk is exact where every item has as many tokens. Shards
    that are there count as stored by their labels; unlike `extract`, this doesn't read them whole.

    Args:
        encoder: the encoder.
        modality: of the rows.
        source: the rows.
        folder: where the store is, or will be.
        workers: threads or processes that prepare rows.
        shard_size: items per file.
        sample: rows that are encoded.

    Raises:
        ConfigError: `sample` is smaller than 1.
        FeatureError: the folder holds another encoder's features.

    >>> import tempfile
    >>> from modalloy.data.manifest import Item, Manifest
    >>> from modalloy.encoders.registry import load_encoder
    >>> from modalloy.features.sources import Captions
    >>> captions = Captions(Manifest(Path("/pictures"), (Item("phone", "phone.png", "0" * 64, "test", ("a phone",)),)))
    >>> todo = estimate(load_encoder("minilm"), "text", captions, tempfile.mkdtemp())
    >>> todo.rows, todo.stored, todo.bytes > 384 * (4 + 5 * 2)
    (1, 0, True)
    """
    if sample < 1:
        raise ConfigError(f"sample must be at least 1, got {sample}.")
    missing = _missing(Path(folder), describe(encoder, modality, source), source, shard_size)
    rows = sum(map(len, missing))
    if not rows:
        return Estimate(len(source), len(source), 0, 0.0)
    tokens, seconds = _measure(encoder, modality, source, _spread(missing, rows, min(sample, rows)), workers)
    row_bytes = 4 * encoder.dim(modality) + 2 * tokens * encoder.width(modality) + _ROW_BYTES
    disk = rows * row_bytes + len(missing) * _HEADER_BYTES + _id_bytes(source)
    return Estimate(len(source), len(source) - rows, round(disk), rows * seconds)


def estimate_derived(
    encoder: Encoder, modality: Modality, source: Source, folder: str | Path, *, tokens: int
) -> Estimate:
    """Estimates a store computed from stored features, with `tokens` an item of its own; its time isn't counted."""
    rows, wanted = len(source), describe(encoder, modality, source)
    try:
        store = FeatureStore.open(folder, expect=wanted.fingerprint)
    except FeatureError:
        store = None
    if store is not None and store.collection == wanted.collection:
        return Estimate(rows, rows, 0, 0.0)
    row_bytes = 4 * wanted.dim + 1 + (2 * tokens * wanted.width + 8 if tokens else 0)
    disk = rows * row_bytes + len(shard_ranges(rows, SHARD_SIZE)) * _HEADER_BYTES + _id_bytes(source)
    return Estimate(rows, 0, round(disk), 0.0)


def free_bytes(folder: str | Path) -> int:
    """Free disk where `folder` is, or would be made."""
    existing = next(each for each in (Path(folder).absolute(), *Path(folder).absolute().parents) if each.exists())
    return shutil.disk_usage(existing).free


def _missing(folder: Path, description: Description, source: Source, shard_size: int) -> list[range]:
    if finished_store(folder, description) is not None:
        return []
    ranges = shard_ranges(len(source), shard_size)
    writer = ShardWriter(folder, description.fingerprint, [source.digest(rows) for rows in ranges])
    return [rows for index, rows in enumerate(ranges) if writer.stored(index) is None]


def _id_bytes(source: Source) -> float:
    rows = len(source)
    places = _spread([range(rows)], rows, min(rows, 1000))
    return rows * sum(len(json.dumps(source.ids[row])) + 1 for row in places) / max(1, len(places))


def _spread(ranges: Sequence[range], rows: int, count: int) -> list[int]:
    """`count` of the rows in `ranges`, equally far from each other."""
    places = {(2 * number + 1) * rows // (2 * count) for number in range(count)}
    return [row for place, row in enumerate(chain.from_iterable(ranges)) if place in places]


def _measure(
    encoder: Encoder, modality: Modality, source: Source, rows: Sequence[int], workers: int
) -> tuple[float, float]:
    """Tokens an item, and seconds an item of whichever is slower: the model, or the workers that feed it."""
    prepare = Preparation(encoder, modality, source)
    start = perf_counter()
    prepared = [prepare(row) for row in rows]
    preparing = (perf_counter() - start) / workers
    encode(encoder, modality, prepared[:1])  # the first forward pass sets things up, which takes longer
    start = perf_counter()
    features = encode(encoder, modality, prepared)
    encoding = perf_counter() - start
    tokens = sum(0 if isinstance(row, Rejection) else len(row.tokens) for row in features)
    return tokens / len(rows), max(preparing, encoding) / len(rows)
