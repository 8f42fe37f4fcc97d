"""Features computed from stored ones: an aligned encoder's embeddings; its backbone's tokens are shared."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from modalloy.encoders.base import Encoded, Encoder
from modalloy.errors import ConfigError, FeatureError
from modalloy.features.lock import only_writer
from modalloy.features.shard import Reject, Shard
from modalloy.features.store import FeatureStore
from modalloy.features.store_manifest import Description, TokensFrom
from modalloy.features.writer import StoreWriter, finished_store, shard_ranges


def derive(
    base: FeatureStore,
    encoder: Encoder,
    folder: str | Path,
    transform: Callable[[Encoded], Encoded],
    *,
    batch_size: int = 64,
) -> FeatureStore:
    """Stores the embeddings that `transform` makes of stored features; the tokens stay in `base`.

    A finished store is opened, an interrupted run goes on; rejected items stay rejected.

    Args:
        base: the backbone's features.
        encoder: whose features these are; its embeddings of new items must be what `transform` gives.
        transform: from the backbone's embeddings and tokens (float32) to the encoder's embeddings; it must
            leave the tokens as they are.
        batch_size: items per call of `transform`.

    Raises:
        ConfigError: `batch_size` is out of range, or the encoder's token width isn't that of `base`.
        FeatureError: the folder holds another encoder's features, or another process writes to it; or `transform`
            changes the tokens, gives other shapes than the encoder says, or numbers that aren't finite.

    >>> import tempfile
    >>> from modalloy.data.manifest import Item, Manifest
    >>> from modalloy.encoders.registry import load_encoder
    >>> from modalloy.features.extract import extract
    >>> item = Item("phone", "phone.png", "0" * 64, "test", ("a red telephone",))
    >>> folder, encoder = Path(tempfile.mkdtemp()), load_encoder("minilm")
    >>> base = extract(encoder, "text", Manifest(folder, (item,)), folder / "base", progress=False)
    >>> same = derive(base, encoder, folder / "same", lambda encoded: encoded)
    >>> torch.equal(same.embeddings(), base.embeddings())
    True
    """
    folder, modality = Path(folder), base.modality
    _check(base, encoder, batch_size)
    description = Description(
        spec=encoder.spec,
        modality=modality,
        fingerprint=encoder.fingerprint(modality),
        dim=encoder.dim(modality),
        width=base.width,
        collection=base.collection,
        tokens_from=TokensFrom(
            Path(os.path.relpath(base.folder, folder)).as_posix(), base.fingerprint.digest, base.collection
        ),
    )
    store = finished_store(folder, description)
    # An item that was rejected may have been encoded since.
    if store is not None and torch.equal(store.valid, base.valid):
        return store
    ranges = shard_ranges(len(base), base.shard_size)
    rejects = [Reject(**reject) for reject in base.rejects()]
    with only_writer(folder):
        writer = StoreWriter(folder, description, base.ids, base.shard_size, base.shard_digests)
        for index in writer.missing:
            rows = torch.tensor(ranges[index])
            valid = base.valid[rows]
            embedding = torch.full((len(rows), description.dim), torch.nan)
            batches = rows[valid].split(batch_size)
            if len(rows[valid]):
                embedding[valid] = torch.cat([_transformed(base, batch, transform, encoder) for batch in batches])
            writer.write(index, Shard(embedding, valid), [reject for reject in rejects if reject.row in ranges[index]])
        return writer.finish()


def _transformed(
    base: FeatureStore, rows: torch.Tensor, transform: Callable[[Encoded], Encoded], encoder: Encoder
) -> torch.Tensor:
    tokens, lengths = base.tokens(rows)
    given = Encoded(base.embeddings(rows), tokens.float(), lengths)
    with torch.inference_mode():
        made = transform(given)
    if made.tokens is not given.tokens and not torch.equal(made.tokens, given.tokens):
        raise FeatureError(f"{encoder.spec}: the transform changed the tokens, which are shared with {base.folder}.")
    embedding = made.embedding.to("cpu", torch.float32)
    expected = (len(rows), encoder.dim(base.modality))
    if tuple(embedding.shape) != expected:
        raise FeatureError(f"{encoder.spec}: embeddings of shape {expected} expected, got {tuple(embedding.shape)}.")
    bad = rows[~embedding.isfinite().all(1)].tolist()
    if bad:
        raise FeatureError(
            f"{encoder.spec} gives embeddings that aren't finite for {len(bad)} items, the first is "
            f"{base.ids[bad[0]]!r}; train it again, with a smaller learning rate."
        )
    return embedding


def _check(base: FeatureStore, encoder: Encoder, batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
    width = encoder.width(base.modality)
    if width != base.width:
        raise ConfigError(
            f"{encoder.spec} has tokens of width {width}, but {base.folder}, which should keep them, "
            f"has width {base.width}; derive from the features of its own backbone."
        )
