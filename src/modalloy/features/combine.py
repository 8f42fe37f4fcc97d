"""Features computed from several stores of the same items: the vectors of an encoder made of encoders."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.encoders.base import Encoder
from modalloy.errors import FeatureError
from modalloy.features.lock import only_writer
from modalloy.features.shard import Reject, Shard
from modalloy.features.store import FeatureStore
from modalloy.features.store_manifest import Description
from modalloy.features.writer import StoreWriter, finished_store, shard_ranges
from modalloy.files import sha256_of_text


def combine(
    bases: Sequence[FeatureStore],
    encoder: Encoder,
    folder: str | Path,
    embed: Callable[[Int[Tensor, " rows"]], Float[Tensor, "rows dim"]],
) -> FeatureStore:
    """Stores what `embed` makes of stored features, as embeddings and as each item's one token.

    A finished store is opened, an interrupted run goes on; an item that any of the stores rejected is rejected.

    Args:
        bases: the stores that `embed` reads, of the same items and modality.
        encoder: whose features these are; its embeddings of new items must be what `embed` gives.
        folder: where they go.
        embed: from rows to the encoder's embeddings.

    Raises:
        FeatureError: the folder holds another encoder's features, another process writes to it, or `embed` gives
            other shapes than the encoder says.
    """
    folder, first = Path(folder), bases[0]
    description = Description(
        spec=encoder.spec,
        modality=first.modality,
        fingerprint=encoder.fingerprint(first.modality),
        dim=encoder.dim(first.modality),
        width=encoder.width(first.modality),
        collection=first.collection,
    )
    store = finished_store(folder, description)
    # An item that was rejected may have been encoded since.
    if store is not None and torch.equal(store.valid, torch.stack([base.valid for base in bases]).all(0)):
        return store
    ranges = shard_ranges(len(first), first.shard_size)
    made_from = sha256_of_text(" ".join(digest for base in bases for digest in base.shard_digests))
    items = [f"{made_from} {index}" for index in range(len(ranges))]
    rejects = {reject["row"]: Reject(**reject) for base in reversed(bases) for reject in base.rejects()}
    with only_writer(folder):
        writer = StoreWriter(folder, description, first.ids, first.shard_size, items)
        for index in writer.missing:
            rows = torch.tensor(ranges[index])
            shard = _shard(rows, torch.tensor([row not in rejects for row in ranges[index]]), description, embed)
            writer.write(index, shard, [rejects[row] for row in ranges[index] if row in rejects])
        return writer.finish()


def _shard(rows: Tensor, valid: Tensor, description: Description, embed: Callable[[Tensor], Tensor]) -> Shard:
    made = embed(rows[valid])
    if made.shape != (int(valid.sum()), description.dim):
        raise FeatureError(f"{description.spec}: embeddings {description.dim} wide expected, got {tuple(made.shape)}.")
    if not bool(made.isfinite().all()):
        raise FeatureError(f"{description.spec} gives embeddings that aren't finite; fit it again.")
    embedding = torch.full((len(rows), description.dim), torch.nan)
    embedding[valid] = made.to("cpu", torch.float32)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), valid.cumsum(0)])
    return Shard(embedding, valid, made.to("cpu", torch.float16), offsets)
