"""One shard: the features of some hundred rows, in one safetensors file that vouches for itself.

The header says which encoder made the rows, from which items, which were rejected and why, and the SHA-256 of
all that with the tensors; so a shard left by a killed run is either taken over as it is or made again.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float16, Float32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modalloy.encoders.base import Fingerprint
from modalloy.errors import FeatureError
from modalloy.files import atomic_path

# safetensors writes metadata in no fixed order, so there is one key: equal shards are equal byte for byte.
_METADATA_KEY = "modalloy-shard-1"


@dataclass(frozen=True)
class Shard:
    """The tensors of some rows; a rejected row has a NaN embedding and no tokens.

    A shard whose tokens are kept by another store holds none.
    """

    embedding: Float32[Tensor, "rows dim"]
    """One vector a row, of unit norm."""
    valid: Bool[Tensor, "rows"]
    """False where the item was rejected."""
    tokens: Float16[Tensor, "packed width"] | None = None
    """The rows' tokens one after the other."""
    offsets: Int64[Tensor, "rows+1"] | None = None
    """Row i has tokens offsets[i] up to offsets[i + 1]."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors there are, by name."""
        named = {
            "embedding": self.embedding,
            "valid": self.valid,
            "tokens": self.tokens,
            "offsets": self.offsets,
        }
        return {name: tensor.contiguous() for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True)
class Reject:
    """An item that couldn't be encoded."""

    row: int
    """Its row in the store."""
    id: str
    """Its image or caption id."""
    path: str
    """The picture, or the picture that the caption describes, relative to the collection's root."""
    reason: str
    """Why, for people."""


@dataclass(frozen=True)
class ShardLabel:
    """What a shard was made from."""

    fingerprint: Fingerprint
    """The encoder."""
    items: str
    """Digest of the ids and contents of the rows' items."""
    rejects: tuple[Reject, ...]
    """The rows without features."""


@dataclass(frozen=True)
class StoredShard:
    """A shard read from disk; its tensors are mapped, so a row is read when it is touched."""

    shard: Shard
    label: ShardLabel
    sha256: str
    """What the contents hashed to when they were written."""

    def is_intact(self) -> bool:
        """Reads everything and compares it with the checksum."""
        return _digest(self.shard, self.label) == self.sha256


@dataclass(frozen=True)
class FileRecord:
    """What a store's manifest says of one of its files."""

    file: str
    rows: int
    bytes: int
    sha256: str
    """Of the contents: for a shard, the checksum that its header carries."""


def write_shard(path: Path, shard: Shard, label: ShardLabel) -> FileRecord:
    """Writes a shard atomically; equal arguments give equal bytes."""
    sha256 = _digest(shard, label)
    metadata = json.dumps({"label": asdict(label), "sha256": sha256}, sort_keys=True)
    with atomic_path(path) as temporary:
        save_file(shard.tensors(), temporary, metadata={_METADATA_KEY: metadata})
    return FileRecord(path.name, shard.valid.shape[0], path.stat().st_size, sha256)


def read_shard(path: Path) -> StoredShard:
    """Maps a shard into memory.

    Raises:
        FeatureError: the file is missing, truncated or no shard.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()[_METADATA_KEY])
            shard = Shard(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return StoredShard(shard, _label_from(metadata["label"]), metadata["sha256"])
    except FileNotFoundError:
        raise FeatureError(f"The feature shard {path} is missing; {MEND_SHARD}.") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, FeatureError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise FeatureError(f"The feature shard {path} is damaged ({reason}); {MEND_SHARD}.") from None


MEND_SHARD = "delete it and run the same step again: only what is missing is made again"


def _label_from(values: dict[str, Any]) -> ShardLabel:
    rejects = tuple(Reject(**reject) for reject in values["rejects"])
    return ShardLabel(Fingerprint.from_dict(values["fingerprint"]), values["items"], rejects)


def _digest(shard: Shard, label: ShardLabel) -> str:
    digest = hashlib.sha256(json.dumps(asdict(label), sort_keys=True).encode())
    for name, tensor in sorted(shard.tensors().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
