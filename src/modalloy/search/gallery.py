"""The gallery: the vectors that queries are compared with, and what to show for each of them.

On disk it is a folder: `vectors.safetensors`, `entries.jsonl` and, written last, `gallery.json` with their
checksums and the encoder's fingerprints.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, get_args

from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from modalloy.encoders import Fingerprint, Modality
from modalloy.encoders.registry import absolute_spec, relative_spec
from modalloy.errors import CheckpointError, ConfigError, DataError, FeatureError
from modalloy.files import atomic_path, read_json, sha256_of, write_json
from modalloy.search.hit import Hit
from modalloy.search.top_k import top_k

FORMAT = "modalloy-gallery-1"
_MANIFEST, _VECTORS, _ENTRIES = "gallery.json", "vectors.safetensors", "entries.jsonl"
_MEND = "make the gallery again"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a gallery knows of one item besides its vector."""

    id: str
    """The image's id, or the caption's; unique in the gallery."""
    path: str | None = None
    """The picture's file, relative to the gallery's root; for a caption, that of the picture it describes."""
    caption: str | None = None
    """The caption; for an image, one of its captions."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images or captions as vectors, searched exactly.

    >>> import torch
    >>> entries = (Entry("a#0", caption="A cat."), Entry("b#0", caption="A dog."))
    >>> gallery = Gallery("text", entries, torch.eye(2), "minilm", {})
    >>> [hit.caption for hit in gallery.search(torch.tensor([[0.6, 0.8]]), k=1)[0]]
    ['A dog.']

    Raises:
        DataError: an id repeats, or there isn't one vector for each entry.
    """

    modality: Modality
    """What it holds."""
    entries: tuple[Entry, ...] = field(repr=False)
    """The items, in the order of their vectors."""
    vectors: Float[Tensor, "items dim"] = field(repr=False)
    """Kept as float32. A row that isn't finite stands for an item without a vector, and is never found."""
    spec: str
    """The encoder that made the vectors, as `load_encoder` takes it."""
    fingerprints: Mapping[Modality, Fingerprint] = field(repr=False)
    """Of that encoder, for each modality it encodes: a query of the other modality must fit, too."""
    root: Path = Path()
    """The folder that the entries' paths start from."""

    def __post_init__(self) -> None:
        if self.modality not in get_args(Modality):
            raise DataError(f"A gallery holds {' or '.join(get_args(Modality))}, got {self.modality!r}.")
        if len(self.vectors) != len(self.entries):
            raise DataError(
                f"A gallery needs one vector for each entry, got {len(self.vectors)} for {len(self.entries)}."
            )
        repeated = [id for id, count in Counter(entry.id for entry in self.entries).items() if count > 1]
        if repeated:
            raise DataError(f"A gallery's ids must be unique, got {repeated[0]!r} more than once.")
        object.__setattr__(self, "vectors", self.vectors.detach().cpu().float().contiguous())

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.vectors.shape[1]

    @cached_property
    def searchable(self) -> Bool[Tensor, "items"]:
        """False where an item has no vector, so that it can't be found."""
        return self.vectors.isfinite().all(dim=1)

    def search(self, queries: Float[Tensor, "queries dim"], k: int = 10) -> list[list[Hit]]:
        """The `k` items with the largest inner products for each query, best first.

        Of equal scores the earlier row comes first. Where there are fewer than `k` items, all are found.

        Raises:
            ConfigError: `k` is smaller than 1.
            DataError: a query has another length than the gallery's vectors, or isn't finite.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}.")
        if queries.shape[1] != self.dim:
            raise DataError(
                f"The gallery's vectors are {self.dim} long, but the queries {queries.shape[1]}; "
                f"make the queries with the gallery's encoder, {self.spec}."
            )
        unusable = (~queries.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if unusable:
            raise DataError(f"Query {unusable[0]} holds NaN or infinity, so nothing compares with it.")
        scores, rows = top_k(queries.detach().cpu(), self.vectors, k, self.searchable)
        return [
            [self._hit(row, score) for row, score in zip(*found, strict=True)]
            for found in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def save(self, folder: str | Path) -> None:
        """Writes the gallery to `folder`; one that was there is replaced.

        An encoder that lies in a folder is recorded relative to this one, so that a run moves as a whole.
        """
        folder = Path(folder).resolve()
        with atomic_path(folder / _VECTORS) as temporary:
            save_file({"vectors": self.vectors}, temporary)
        with atomic_path(folder / _ENTRIES) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in self.entries)
        write_json(
            folder / _MANIFEST,
            {
                "format": FORMAT,
                "modality": self.modality,
                "rows": len(self),
                "dim": self.dim,
                "root": self.root.resolve().as_posix(),
                "spec": relative_spec(self.spec, folder),
                "fingerprints": {side: made_by.to_dict() for side, made_by in self.fingerprints.items()},
                "sha256": {name: sha256_of(folder / name) for name in (_VECTORS, _ENTRIES)},
            },
        )

    @classmethod
    def load(cls, folder: str | Path, root: str | Path | None = None) -> Self:
        """Reads a gallery that `save` wrote; its vectors are memory-mapped.

        Args:
            folder: where it is.
            root: the folder that the pictures' paths start from, if they have moved.

        Raises:
            CheckpointError: the folder holds no gallery, or a file of it is damaged or another gallery's.
        """
        folder = Path(folder).resolve()
        manifest = _read_manifest(folder)
        try:
            _check_files(folder, manifest)
            return cls(
                modality=manifest["modality"],
                entries=_read_entries(folder),
                vectors=_read_vectors(folder, (manifest["rows"], manifest["dim"])),
                spec=absolute_spec(manifest["spec"], folder),
                fingerprints={
                    side: Fingerprint.from_dict(made_by) for side, made_by in manifest["fingerprints"].items()
                },
                root=Path(manifest["root"] if root is None else root),
            )
        except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{folder} can't be loaded as a gallery ({reason}); {_MEND}.") from error
        except (DataError, FeatureError) as error:
            raise CheckpointError(f"{folder} can't be loaded as a gallery: {error}") from error

    def _hit(self, row: int, score: float) -> Hit:
        entry = self.entries[row]
        path = None if entry.path is None else str(self.root / entry.path)
        return Hit(entry.id, score, path=path, captions=(entry.caption,) if entry.caption else ())


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = read_json(folder / _MANIFEST)
    except DataError as error:
        raise CheckpointError(f"{folder} holds no gallery: {error}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
    if found != FORMAT:
        raise CheckpointError(
            f"{folder / _MANIFEST} isn't a gallery's: expected format {FORMAT!r}, got {found!r}; check the path."
        )
    return dict(manifest)


def _check_files(folder: Path, manifest: dict[str, Any]) -> None:
    for name in (_VECTORS, _ENTRIES):
        if sha256_of(folder / name) != manifest["sha256"][name]:
            raise CheckpointError(
                f"{folder / name} isn't the file that {_MANIFEST} describes: it is damaged, or saving was "
                f"interrupted; {_MEND}."
            )


def _read_entries(folder: Path) -> tuple[Entry, ...]:
    with (folder / _ENTRIES).open(encoding="utf-8") as lines:
        return tuple(Entry(**json.loads(line)) for line in lines)


def _read_vectors(folder: Path, shape: tuple[int, int]) -> Float[Tensor, "items dim"]:
    vectors = load_file(folder / _VECTORS)["vectors"]
    if vectors.shape != shape:
        raise DataError(f"{_VECTORS} should hold {shape[0]} x {shape[1]} numbers, got {list(vectors.shape)}.")
    return vectors
