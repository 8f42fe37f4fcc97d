"""A store's manifest.json: what its features are, and which files hold them. It is written last."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from modalloy.encoders.base import Fingerprint, Modality
from modalloy.errors import DataError, FeatureError
from modalloy.features.shard import MEND_SHARD, FileRecord
from modalloy.files import read_json, write_json

_FORMAT = "modalloy-features-1"
_NAME = "manifest.json"


@dataclass(frozen=True)
class TokensFrom:
    """The store that keeps the tokens of a derived store."""

    folder: str
    """Relative to the derived store's folder, in POSIX form."""
    fingerprint: str
    """Digest of the keeping store's encoder fingerprint."""
    collection: str
    """Digest of the keeping store's items."""


@dataclass(frozen=True)
class Description:
    """What features are of: equal descriptions mean interchangeable features."""

    spec: str
    """The encoder, as `load_encoder` takes it."""
    modality: Modality
    fingerprint: Fingerprint
    dim: int
    """Length of an embedding."""
    width: int
    """Length of a token."""
    collection: str
    """Digest of the ids and contents of all items."""
    tokens_from: TokensFrom | None = None
    """Where the tokens are, if not in this store."""


@dataclass(frozen=True)
class StoreManifest:
    """The description, and the files with their sizes and checksums."""

    description: Description
    rows: int
    shard_size: int
    """Rows of every shard but the last."""
    ids: FileRecord
    rejects: FileRecord
    shards: tuple[FileRecord, ...]

    def save(self, folder: Path) -> None:
        """Writes manifest.json into `folder`."""
        write_json(folder / _NAME, {"format": _FORMAT, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> "StoreManifest":
        """Reads the manifest.json of `folder`.

        Raises:
            FeatureError: there is none, so the extraction isn't finished; or it isn't a store's manifest.
        """
        path = folder / _NAME
        if not path.exists():
            raise FeatureError(
                f"{folder} holds no finished features ({_NAME} is missing); "
                "run `modalloy extract` into it: a run that was interrupted goes on where it stopped."
            )
        try:
            return cls._from_dict(read_json(path))
        except (DataError, KeyError, TypeError, ValueError, AttributeError, FeatureError) as error:
            raise FeatureError(
                f"{path} isn't the manifest of a feature store ({type(error).__name__}: {error}); {MEND_SHARD}."
            ) from None

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> "StoreManifest":
        values = dict(values)
        stated = values.pop("format", None)
        if stated != _FORMAT:
            raise ValueError(f"format should be {_FORMAT!r}, got {stated!r}")
        description = dict(values["description"])
        description["fingerprint"] = Fingerprint.from_dict(description["fingerprint"])
        if description["tokens_from"] is not None:
            description["tokens_from"] = TokensFrom(**description["tokens_from"])
        values["description"] = Description(**description)
        values["ids"] = FileRecord(**values["ids"])
        values["rejects"] = FileRecord(**values["rejects"])
        values["shards"] = tuple(FileRecord(**record) for record in values["shards"])
        return cls(**values)

    @staticmethod
    def remove(folder: Path) -> None:
        """Removes the manifest before files change, so that a half-changed store never looks whole."""
        (folder / _NAME).unlink(missing_ok=True)

    def missing_or_resized(self, folder: Path) -> list[str]:
        """What a look at the file sizes shows to be wrong, one line a file."""
        problems = []
        for record in (self.ids, self.rejects, *self.shards):
            path = folder / record.file
            size = path.stat().st_size if path.exists() else None
            if size is None:
                problems.append(f"{path} is missing; {MEND_SHARD}.")
            elif size != record.bytes:
                problems.append(f"{path} should have {record.bytes} bytes, got {size}; {MEND_SHARD}.")
        return problems


def require_fingerprint(expected: Fingerprint, got: Fingerprint, folder: Path) -> None:
    """Refuses the features in `folder` if another encoder made them.

    Raises:
        FeatureError: says which fields differ.
    """
    if expected == got:
        return
    wanted, found = expected.to_dict(), got.to_dict()
    differences = "; ".join(
        f"{field}: expected {wanted[field]}, got {found[field]}" for field in wanted if wanted[field] != found[field]
    )
    raise FeatureError(
        f"The features in {folder} were made by another encoder or preprocessing ({differences}). "
        f"Extract again: delete the folder and run `modalloy extract`, or use the encoder that made them."
    )


def digest_of_items(items: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over (id, content) pairs, in order.

    >>> digest_of_items([("a", "b")]) == digest_of_items([("a", "c")])
    False
    """
    digest = sha256()
    for item in items:
        digest.update(json.dumps(item).encode() + b"\n")
    return digest.hexdigest()
