"""Reading stored features: memory-mapped shards, a thousand of them open at a time.

safetensors maps a file, so a shard opens in a fraction of a millisecond and only the touched rows are read:
64 rows of 50 x 1280 tokens, picked at random, take about 1 ms.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor

from modalloy.data.manifest import Manifest
from modalloy.encoders.base import Fingerprint, Modality
from modalloy.errors import FeatureError
from modalloy.features.shard import MEND_SHARD, Reject, Shard, StoredShard, read_shard
from modalloy.features.sources import source_of
from modalloy.features.store_manifest import StoreManifest, require_fingerprint
from modalloy.files import sha256_of

# A random batch touches nearly all shards of a collection, and to open one takes as long as to read many rows.
_OPEN_SHARDS = 1024


class FeatureStore:
    """The features of one encoder and one modality of a collection, row by row.

    A rejected item keeps its row: its embedding is NaN, it has no tokens, and `valid` is False there.
    Use `FeatureStore.open`, `extract` or `derive` to get one.

    >>> import tempfile
    >>> from modalloy.data.manifest import Item
    >>> from modalloy.encoders.registry import load_encoder
    >>> from modalloy.features import extract, pad
    >>> item = Item("phone", "phone.png", "0" * 64, "test", ("a red telephone", "a phone"))
    >>> collection, folder = Manifest(Path(tempfile.gettempdir()), (item,)), tempfile.mkdtemp()
    >>> _ = extract(load_encoder("minilm"), "text", collection, folder, progress=False)
    >>> store = FeatureStore.open(folder)
    >>> rows = store.rows_of(["phone#1"])
    >>> tokens, mask = pad(*store.tokens(rows))
    >>> tuple(store.embeddings(rows).shape), tuple(tokens.shape), store.verify()
    ((1, 384), (1, 5, 384), [])
    """

    def __init__(self, folder: Path, manifest: StoreManifest, base: "FeatureStore | None") -> None:
        self.folder = folder
        self._manifest = manifest
        self._base = base
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._map_shard)

    @classmethod
    def open(
        cls, folder: str | Path, expect: Fingerprint | None = None, collection: Manifest | None = None
    ) -> "FeatureStore":
        """Opens a finished store; compares file sizes, but reads no features.

        Args:
            expect: the fingerprint that the features must have.
            collection: the collection whose items the features must be of.

        Raises:
            FeatureError: the extraction isn't finished, a file is missing or truncated, the features are
                another encoder's or another collection's, or the store that keeps the tokens has changed.
        """
        folder = Path(folder)
        manifest = StoreManifest.load(folder)
        if expect is not None:
            require_fingerprint(expect, manifest.description.fingerprint, folder)
        problems = manifest.missing_or_resized(folder)
        if problems:
            more = f" ({len(problems) - 1} more files are damaged.)" if len(problems) > 1 else ""
            raise FeatureError(problems[0] + more)
        if collection is not None:
            _require_collection(collection, manifest, folder)
        return cls(folder, manifest, _open_base(folder, manifest))

    def __len__(self) -> int:
        return self._manifest.rows

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.folder)!r}: {len(self)} {self.modality} rows of {self.spec})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.folder, self.spec)

    @property
    def spec(self) -> str:
        """The encoder, as `load_encoder` takes it."""
        return self._manifest.description.spec

    @property
    def modality(self) -> Modality:
        """Whether the rows are images or captions."""
        return self._manifest.description.modality

    @property
    def fingerprint(self) -> Fingerprint:
        """Which weights and preprocessing made the features."""
        return self._manifest.description.fingerprint

    @property
    def collection(self) -> str:
        """Digest of the ids and contents of the items."""
        return self._manifest.description.collection

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self._manifest.description.dim

    @property
    def width(self) -> int:
        """Length of a token."""
        return self._manifest.description.width

    @property
    def shard_size(self) -> int:
        """Rows of every shard but the last; rows of one shard are the cheapest to read together."""
        return self._manifest.shard_size

    @property
    def shard_digests(self) -> list[str]:
        """Each shard's checksum, for what is made from it."""
        return [record.sha256 for record in self._manifest.shards]

    @cached_property
    def ids(self) -> Sequence[str]:
        """The image ids, or caption ids, in row order."""
        with (self.folder / self._manifest.ids.file).open(encoding="utf-8") as lines:
            return tuple(json.loads(line) for line in lines)

    @cached_property
    def valid(self) -> Bool[Tensor, "rows"]:
        """False where the item was rejected."""
        valid = torch.ones(len(self), dtype=torch.bool)
        valid[[reject.row for reject in self._rejects]] = False
        return valid

    def rejects(self) -> list[dict[str, Any]]:
        """The rejected items: row, id, path and reason."""
        return [asdict(reject) for reject in self._rejects]

    def rows_of(self, ids: Sequence[str]) -> Int[Tensor, "batch"]:
        """The rows of `ids`, in their order.

        Raises:
            FeatureError: an id isn't in the store.
        """
        missing = [id for id in ids if id not in self._row_of]
        if missing:
            raise FeatureError(
                f"{len(missing)} of {len(ids)} ids aren't in {self.folder}, the first is {missing[0]!r}; "
                "extract the features of this collection again."
            )
        return torch.tensor([self._row_of[id] for id in ids], dtype=torch.long)

    def embeddings(self, rows: Int[Tensor, "batch"] | slice | None = None) -> Float[Tensor, "batch dim"]:
        """The embeddings of `rows` (default: all), float32, of unit norm; NaN where the item was rejected.

        Raises:
            FeatureError: a row is out of range, or a shard is damaged.
        """
        numbers = self._row_numbers(rows)
        embeddings = torch.empty(len(numbers), self.dim)
        for shard, places, within in self._by_shard(numbers):
            embeddings[places] = shard.embedding[within]
        return embeddings

    def tokens(
        self, rows: Int[Tensor, "batch"] | slice | None = None, limit: int | None = None
    ) -> tuple[Float16[Tensor, "packed width"], Int[Tensor, "batch"]]:
        """The tokens of `rows` (default: all), packed one item after the other, and how many each has.

        `modalloy.features.pad` pads them. With `limit` only so many of each item's are read, from the summary token on.

        Raises:
            FeatureError: a row is out of range, or a shard is damaged.
        """
        if self._base is not None:
            return self._base.tokens(rows, limit)
        numbers = self._row_numbers(rows)
        lengths = torch.zeros(len(numbers), dtype=torch.long)
        pieces = [torch.empty(0, self.width, dtype=torch.float16)] * len(numbers)
        for shard, places, within in self._by_shard(numbers):
            assert shard.tokens is not None and shard.offsets is not None
            starts, ends = shard.offsets[within], shard.offsets[within + 1]
            if limit is not None:
                ends = ends.minimum(starts + limit)
            lengths[places] = ends - starts
            for place, start, end in zip(places.tolist(), starts.tolist(), ends.tolist(), strict=True):
                pieces[place] = shard.tokens[start:end]
        packed = torch.cat(pieces) if pieces else torch.empty(0, self.width, dtype=torch.float16)
        return packed, lengths

    def under_spec(self, spec: str) -> "FeatureStore":
        """The same features by another spec, where the recorded one doesn't lead to them."""
        description = replace(self._manifest.description, spec=spec)
        return FeatureStore(self.folder, replace(self._manifest, description=description), self._base)

    def verify(self) -> list[str]:
        """Reads every file and compares it with its checksum; gives the problems, one line each."""
        problems = self._manifest.missing_or_resized(self.folder)
        if problems:
            return problems
        for record in (self._manifest.ids, self._manifest.rejects):
            if sha256_of(self.folder / record.file) != record.sha256:
                problems.append(f"{self.folder / record.file} doesn't match its checksum; {MEND_SHARD}.")
        for record in self._manifest.shards:
            path = self.folder / record.file
            try:
                stored = read_shard(path)
            except FeatureError as error:
                problems.append(str(error))
                continue
            if stored.sha256 != record.sha256 or not stored.is_intact():
                problems.append(f"{path} doesn't match its checksum; {MEND_SHARD}.")
        return problems + (self._base.verify() if self._base is not None else [])

    @cached_property
    def _rejects(self) -> tuple[Reject, ...]:
        with (self.folder / self._manifest.rejects.file).open(encoding="utf-8") as lines:
            return tuple(Reject(**json.loads(line)) for line in lines)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {id: row for row, id in enumerate(self.ids)}

    def _row_numbers(self, rows: Int[Tensor, "batch"] | slice | None) -> Int[Tensor, "batch"]:
        if rows is None:
            return torch.arange(len(self))
        if isinstance(rows, slice):
            return torch.arange(*rows.indices(len(self)))
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise FeatureError(
                f"Rows of {self.folder} go from 0 to {len(self) - 1}, "
                f"got {int(rows.min())} to {int(rows.max())}; get them by rows_of."
            )
        return rows.cpu().long()

    def _by_shard(self, rows: Int[Tensor, "batch"]) -> Iterator[tuple[Shard, Tensor, Tensor]]:
        """Each shard that holds some of `rows`, their places in `rows`, and their places in the shard."""
        shards, order = (rows // self.shard_size).sort(stable=True)
        indices, counts = shards.unique_consecutive(return_counts=True)
        for index, places in zip(indices.tolist(), order.split(counts.tolist()), strict=True):
            yield self._shard(index).shard, places, rows[places] % self.shard_size

    def _map_shard(self, index: int) -> StoredShard:
        record = self._manifest.shards[index]
        stored = read_shard(self.folder / record.file)
        if stored.sha256 != record.sha256:
            raise FeatureError(
                f"The feature shard {self.folder / record.file} isn't the one that the manifest names "
                f"(checksum {stored.sha256}, expected {record.sha256}); {MEND_SHARD}."
            )
        return stored


def _reopened(folder: Path, spec: str) -> FeatureStore:
    return FeatureStore.open(folder).under_spec(spec)


def _require_collection(collection: Manifest, manifest: StoreManifest, folder: Path) -> None:
    expected = source_of(collection, manifest.description.modality).digest()
    got = manifest.description.collection
    if expected != got:
        raise FeatureError(
            f"The features in {folder} are of another collection, or its items have changed since "
            f"(digest of the items: expected {expected}, got {got}); run `modalloy extract` again: "
            "only the shards that changed are made again."
        )


def _open_base(folder: Path, manifest: StoreManifest) -> FeatureStore | None:
    kept_by = manifest.description.tokens_from
    if kept_by is None:
        return None
    try:
        base = FeatureStore.open((folder / kept_by.folder).resolve())
    except FeatureError as error:
        raise FeatureError(f"The features in {folder} refer to tokens that can't be opened: {error}") from None
    if (base.fingerprint.digest, base.collection) != (kept_by.fingerprint, kept_by.collection):
        raise FeatureError(
            f"The features in {folder} were derived from others than {base.folder} holds now "
            f"(fingerprint {kept_by.fingerprint} of items {kept_by.collection} expected, "
            f"got {base.fingerprint.digest} of items {base.collection}); derive them again."
        )
    return base
