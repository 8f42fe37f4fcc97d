"""Feature stores of random features, in the shapes of HADA's inputs, written by the package's own writer."""

from pathlib import Path

import torch
import torch.nn.functional as F

from modalloy.encoders import Fingerprint, Modality
from modalloy.features import FeatureStore
from modalloy.features.shard import Shard
from modalloy.features.store_manifest import Description
from modalloy.features.writer import StoreWriter, shard_ranges
from modalloy.fusion import FeatureSet, InputShape

SHARD_SIZE = 64


def random_set(
    folder: Path, modality: Modality, rows: int, lengths: tuple[int, ...], shapes: list[InputShape]
) -> FeatureSet:
    """Features of `rows` items by several encoders, each with its number of tokens."""
    stores = [
        random_store(folder / f"{modality}-{number}", modality, rows, length, shape.dim, shape.width(modality))
        for number, (length, shape) in enumerate(zip(lengths, shapes, strict=True))
    ]
    return FeatureSet(stores)


def random_store(folder: Path, modality: Modality, rows: int, tokens: int, dim: int, width: int) -> FeatureStore:
    fingerprint = Fingerprint(folder.name, "1", "a" * 64, "b" * 64)
    ranges = shard_ranges(rows, SHARD_SIZE)
    description = Description(folder.name, modality, fingerprint, dim, width, collection="c" * 64)
    writer = StoreWriter(folder, description, [str(row) for row in range(rows)], SHARD_SIZE, ["d" * 64] * len(ranges))
    generator = torch.Generator().manual_seed(0)
    for index, part in enumerate(ranges):
        embedding = F.normalize(torch.randn(len(part), dim, generator=generator), dim=-1)
        packed = torch.randn(len(part) * tokens, width, generator=generator).half()
        offsets = torch.arange(len(part) + 1) * tokens
        writer.write(index, Shard(embedding, torch.ones(len(part), dtype=torch.bool), packed, offsets), [])
    return writer.finish()
