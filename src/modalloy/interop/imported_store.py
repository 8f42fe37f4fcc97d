"""Fills a feature store with features that were made elsewhere, from one .npz file or more, shard by shard."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, takewhile
from pathlib import Path

import numpy as np
import torch

from modalloy.errors import DataError, FeatureError
from modalloy.features import FeatureStore
from modalloy.features.assembly import Features, Rejection, assemble
from modalloy.features.lock import only_writer
from modalloy.features.shard import Reject, read_shard
from modalloy.features.sources import Source
from modalloy.features.store_manifest import Description, StoreManifest, digest_of_items
from modalloy.features.writer import StoreWriter, finished_store, shard_ranges
from modalloy.files import sha256_of_text
from modalloy.interop.npz import Array, contents_digest
from modalloy.progress import BAR_FROM, track

SHARD_SIZE = 256
_SAMPLED_FILES = 16


@dataclass(frozen=True)
class FeatureFile:
    """A file that holds the features of some rows, which stand together in the store."""

    path: Path
    """Where it is, or should be."""
    rows: range
    """The rows."""


Read = Callable[[int], list[Features | Rejection]]
"""From a file's number to the features of its rows."""


@dataclass(frozen=True)
class Sample:
    """What the first files that can be used say of all."""

    dim: int
    """Length of an embedding."""
    width: int
    """Length of a token."""
    digest: str
    """SHA-256 that stands for the encoder's weights, which aren't there to be hashed: over what the encoder made of
    the first items. Other weights give another; a file mended or added later doesn't."""


def sample(files: Sequence[FeatureFile], read: Read) -> Sample:
    """Reads the first files that can be used.

    Raises:
        DataError: there is none.
    """
    shapes, digests, first_reason = Counter[tuple[int, int]](), list[str](), ""
    for number, file in enumerate(files):
        answers = read(number) if file.rows else []
        good = [answer for answer in answers if isinstance(answer, Features)]
        if not good:
            reasons = (answer.reason for answer in answers if isinstance(answer, Rejection))
            first_reason = first_reason or next(reasons, "")
            continue
        shapes.update((len(each.embedding), each.tokens.shape[1]) for each in good)
        digests.append(str(contents_digest(file.path)))
        if len(digests) == _SAMPLED_FILES:
            break
    if not shapes:
        raise DataError(f"none of {len(files)} feature files can be used; the first: {first_reason}")
    (dim, width), _ = shapes.most_common(1)[0]
    return Sample(dim, width, sha256_of_text(" ".join(digests)))


def fill(
    folder: Path,
    description: Description,
    source: Source,
    files: Sequence[FeatureFile],
    read: Read,
    *,
    progress: bool = True,
) -> FeatureStore:
    """Stores the features in `files`, or opens the store if it holds them already; an interrupted run goes on.

    A row whose features can't be used is a reject: it stays in its place, without features. Memory holds one shard.

    Args:
        folder: where the store goes.
        description: what its features are.
        source: the items, one a row.
        files: where each row's features are, in the rows' order.
        read: gives a file's features, one for each of its rows.
        progress: shows a bar with the time left on stderr.

    Raises:
        FeatureError: the folder holds another encoder's features.
    """
    label = f"{description.spec} {description.modality}"
    looked_at = track(files, f"{label}: contents", len(files), shown_from=BAR_FROM) if progress else files
    contents = [str(contents_digest(file.path)) for file in looked_at]
    file_of = [number for number, file in enumerate(files) for _ in file.rows]
    ranges = shard_ranges(len(source), SHARD_SIZE)
    items = [
        digest_of_items((source.ids[row], f"{source.content(row)} {contents[file_of[row]]}") for row in rows)
        for rows in ranges
    ]
    # The rows of one file may stand in two shards.
    read_once = lru_cache(maxsize=1)(read)

    def answer(row: int) -> Features | Rejection:
        file = files[file_of[row]]
        return _fitting(read_once(file_of[row])[row - file.rows.start], description, file.path)

    with only_writer(folder):
        store = finished_store(folder, description)
        if store is not None and _made_from(folder) == items:
            return store
        writer = StoreWriter(folder, description, source.ids, SHARD_SIZE, items)
        missing = writer.missing
        done = len(ranges) - len(missing)
        bar = track(missing, label, len(ranges), done) if progress else missing
        for index in bar:
            answers = [answer(row) for row in ranges[index]]
            rejects = [
                Reject(row, source.ids[row], source.path(row), made.reason)
                for row, made in zip(ranges[index], answers, strict=True)
                if isinstance(made, Rejection)
            ]
            writer.write(index, assemble(answers, description.dim, description.width), rejects)
        return writer.finish()


def remove_copies_from(folder: Path, first: int) -> None:
    """Removes the augmented copies of an earlier import from number `first` on: all that are there are counted."""
    copies = list(takewhile(Path.is_dir, (folder / f"augment-{copy}" for copy in count(first))))
    # From the last one, so that after an interruption the next import finds the others.
    for copy in reversed(copies):
        shutil.rmtree(copy)


def features_of(embedding: Array, tokens: Array) -> Features | Rejection:
    """One item's features as they are stored: a unit-norm float32 embedding, float16 tokens.

    Args:
        embedding: numbers, "dim", of any length but 0.
        tokens: numbers, "tokens width", the summary token first.

    >>> features_of(np.array([3.0, 4.0]), np.ones((2, 5))).embedding.tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    for name, array, axes in (("embedding", embedding, 1), ("tokens", tokens, 2)):
        if array.dtype.kind != "f" or array.ndim != axes or 0 in array.shape:
            return Rejection(f"its {name} should be numbers on {axes} axes, got {array.dtype} of shape {array.shape}")
    # A number beyond the type becomes infinite, and is refused below.
    with np.errstate(over="ignore"):
        vector = torch.from_numpy(embedding.astype(np.float32))
        stored = torch.from_numpy(tokens.astype(np.float16))
    length = vector.norm()
    if not bool(length.isfinite()) or float(length) == 0:
        return Rejection("its embedding has no direction (zeros, NaN or infinite numbers)")
    if not bool(stored.isfinite().all()):
        return Rejection("non-finite token (NaN, or beyond float16)")
    return Features(vector / length, stored)


def _fitting(answer: Features | Rejection, description: Description, path: Path) -> Features | Rejection:
    if isinstance(answer, Rejection):
        return answer
    got, expected = (len(answer.embedding), answer.tokens.shape[1]), (description.dim, description.width)
    if got == expected:
        return answer
    return Rejection(f"{path}: its (embedding, token) lengths are {got}, those of most are {expected}")


def _made_from(folder: Path) -> list[str] | None:
    """What each shard of a finished store says it was made from."""
    try:
        return [read_shard(folder / record.file).label.items for record in StoreManifest.load(folder).shards]
    except FeatureError:
        return None
