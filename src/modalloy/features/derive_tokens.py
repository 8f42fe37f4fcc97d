"""Features computed from stored ones, tokens and all, of some of the items: a local branch's tokens of a gallery."""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from modalloy.encoders.base import Encoded, Encoder
from modalloy.errors import ConfigError, FeatureError
from modalloy.features.assembly import Features, Rejection, answers_of, assemble
from modalloy.features.lock import only_writer
from modalloy.features.store import FeatureStore
from modalloy.features.store_manifest import Description, digest_of_items
from modalloy.features.writer import StoreWriter, finished_store, shard_ranges


def derive_tokens(
    base: FeatureStore,
    rows: Int[Tensor, " items"],
    encoder: Encoder,
    folder: str | Path,
    transform: Callable[[Encoded], Encoded],
    *,
    batch_size: int = 64,
) -> FeatureStore:
    """Stores the embeddings and tokens that `transform` makes of some items' stored features.

    A finished store is opened, an interrupted run goes on, and where the items or their features have changed, only the
    shards that hold them are made again.

    Args:
        base: the features that `transform` reads.
        rows: which of its items, all valid; they are the new store's, in this order.
        encoder: whose features these are; what it makes of new items must be what `transform` gives.
        folder: where they go.
        transform: from the stored embeddings and tokens (float32) to the encoder's.
        batch_size: items per call of `transform`.

    Raises:
        ConfigError: `batch_size` is out of range.
        FeatureError: the folder holds another encoder's features, or another process writes to it; an item has no
            features in `base`; or `transform` gives other shapes than the encoder says, or numbers that aren't finite
            in float16, in which tokens are stored.

    >>> import tempfile
    >>> from modalloy.data.manifest import Item, Manifest
    >>> from modalloy.encoders.registry import load_encoder
    >>> from modalloy.features.extract import extract
    >>> item = Item("phone", "phone.png", "0" * 64, "test", ("a red telephone", "a phone"))
    >>> folder, encoder = Path(tempfile.mkdtemp()), load_encoder("minilm")
    >>> base = extract(encoder, "text", Manifest(folder, (item,)), folder / "base", progress=False)
    >>> second = derive_tokens(base, torch.tensor([1]), encoder, folder / "second", lambda encoded: encoded)
    >>> second.ids, second.tokens()[0].shape
    (('phone#1',), torch.Size([5, 384]))
    """
    folder, modality, ids, made_of = Path(folder), base.modality, base.ids, base.shard_digests
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
    if invalid := rows[~base.valid[rows]].tolist():
        raise FeatureError(f"{base.folder} has no features of {ids[invalid[0]]!r}; leave it out.")
    contents = [(ids[row], made_of[row // base.shard_size]) for row in rows.tolist()]
    ranges = shard_ranges(len(rows), base.shard_size)
    description = Description(
        spec=encoder.spec,
        modality=modality,
        fingerprint=encoder.fingerprint(modality),
        dim=encoder.dim(modality),
        width=encoder.width(modality),
        collection=digest_of_items(contents),
    )
    if (store := finished_store(folder, description)) is not None:
        return store
    items = [digest_of_items(contents[part.start : part.stop]) for part in ranges]
    with only_writer(folder):
        writer = StoreWriter(folder, description, [id for id, _ in contents], base.shard_size, items)
        for index in writer.missing:
            made = list[Features]()
            for batch in rows[ranges[index].start : ranges[index].stop].split(batch_size):
                made += _transformed(base, batch, transform, encoder)
            writer.write(index, assemble(made, description.dim, description.width), [])
        return writer.finish()


def _transformed(
    base: FeatureStore, rows: Int[Tensor, " batch"], transform: Callable[[Encoded], Encoded], encoder: Encoder
) -> list[Features]:
    tokens, lengths = base.tokens(rows)
    with torch.inference_mode():
        made = transform(Encoded(base.embeddings(rows), tokens.float(), lengths))
    found = list[Features]()
    for row, answer in zip(rows.tolist(), answers_of(made, encoder, base.modality, len(rows)), strict=True):
        if isinstance(answer, Rejection):
            raise FeatureError(
                f"{encoder.spec} makes a {answer.reason} of {base.ids[row]!r}, where finite numbers are expected; "
                "train it again, with a smaller learning rate."
            )
        found.append(answer)
    return found
