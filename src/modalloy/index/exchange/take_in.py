"""Vectors made elsewhere as an index: what other tools wrote is data to be checked, not to be trusted."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from modalloy.data.metadata import kind_of
from modalloy.data.readers.extra_columns import ExtraColumns
from modalloy.encoders import Encoder, Modality
from modalloy.errors import CheckpointError, ConfigError, DataError, one_line
from modalloy.index.base import Head, Index, Source
from modalloy.index.encoder_spec import head_of, made_by
from modalloy.index.exchange.checked_pair import Pair, own_pair, peer_pair
from modalloy.index.exchange.faiss_index import read_faiss
from modalloy.index.exchange.folder import head_of_folder
from modalloy.index.exchange.npy_parquet import read_npy_parquet
from modalloy.index.exchange.pairs import CAPTION, IMAGE_PATH, NUMBER, Part
from modalloy.index.opening import create_index, open_index
from modalloy.index.row_checks import UNIT
from modalloy.index.schema import COLUMNS, META, VECTOR, MetaKind, rows_schema
from modalloy.index.source_name import check_source_name, source_name_of

READERS = {"npy-parquet": read_npy_parquet, "faiss": read_faiss}
"""What can be taken in, and by what it is read."""

_LOOKS = ("width", "height", "thumbnail")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class TakenIn:
    """What was imported."""

    pictures: int = 0
    """Rows of pictures; one that comes in several parts counts in each."""
    captions: int = 0
    """Rows of captions."""
    normalised: int = 0
    """Vectors that weren't of unit norm, and now are."""
    left_out: dict[str, int] = field(default_factory=dict)
    """How many pairs couldn't be used, by the reason."""
    made_by_encoder: bool = False
    """Whether the folder says which encoder made its vectors, and it is the index's; else nobody knows."""


def index_of(location: str, encoder: Encoder, folder: str | Path) -> Index:
    """The index there, or a new one, that shall hold a folder's vectors.

    Args:
        location: a folder or a URI.
        encoder: that made the vectors.
        folder: to be imported; nothing is made if it can't be.

    Raises:
        CheckpointError: the index is damaged, or it or the folder is another encoder's.
        ConfigError: the encoder doesn't embed pictures and texts in one space.
        DataError: there is no such folder.
    """
    head = head_of(encoder, location)
    expected_head(Path(folder), head)
    try:
        index: Index = open_index(location)
    except CheckpointError:
        # Refuses where there is one, though a damaged one.
        return create_index(location, head)
    if not made_by(index.head, encoder):
        raise CheckpointError(
            f"{index.location} is an index of {index.head.spec}, not of {encoder.spec} as it is here; choose another."
        )
    return index


def expected_head(folder: Path, head: Head) -> Head | None:
    """What the folder says of its vectors, if modalloy exported it.

    Args:
        folder: to be imported.
        head: of the index that shall hold the vectors.

    Raises:
        CheckpointError: the vectors are another encoder's than the index's.
    """
    said = head_of_folder(folder)
    if said is not None and (dict(said.fingerprints), said.dim) != (dict(head.fingerprints), head.dim):
        raise CheckpointError(
            f"{folder} was exported from an index of {said.spec}, whose vectors can't be compared with those of "
            f"{head.spec} here; import it with its own encoder."
        )
    return said


def take_in(
    index: Index, kind: str, folder: str | Path, *, name: str | None = None, images: str | Path | None = None
) -> TakenIn:
    """Adds a folder's vectors to an index, some thousand at a time; run again, it replaces them by the same.

    Args:
        index: of the encoder that made the vectors.
        kind: one of `READERS`.
        folder: what another tool, or modalloy, exported.
        name: of the source that the pictures get where modalloy didn't export them; default: the folder's.
        images: the folder of the pictures, to which paths are made relative; default: `folder`.

    Raises:
        CheckpointError: the vectors are another encoder's.
        ConfigError: the kind is unknown, or the name can't be a source's.
        DataError: the folder isn't of that kind, or its files don't fit each other or the index.
    """
    if kind not in READERS:
        raise ConfigError(f"{kind!r} can't be imported, only {', '.join(READERS)}.")
    folder = Path(folder).resolve()
    said = expected_head(folder, index.head)
    result = TakenIn(made_by_encoder=said is not None)
    for each in () if said is None else said.sources:
        _log.info("the pictures of %s are looked for in %s, as it says", each.name or folder, each.root)
    if said is None:
        _log.warning(
            "%s doesn't say which encoder made its vectors: if it wasn't %s, searches will find nonsense",
            folder,
            index.head.spec,
        )
    # Without a collection: an update of it would find neither the captions nor which files are as they were.
    name = source_name_of(folder.name) if name is None else name
    check_source_name(name)
    source = Source(name, "", None, str(Path(images or folder).resolve()))
    sources = said.sources if said is not None else (source,)
    head = index.head
    for each in sources:
        head = head.with_source(each)
    if head != index.head:
        index.commit(head=head)
    extra = ExtraColumns((*COLUMNS, IMAGE_PATH, CAPTION, NUMBER))
    for part in READERS[kind](folder):
        _check_part(part, index.head.dim, folder)
        pairs = [
            own_pair(row, sources) if said is not None else peer_pair(row, source, extra)
            for row in part.table.to_pylist()
        ]
        _commit(index, pairs, {side: _unit(vectors, result, folder) for side, vectors in part.vectors.items()}, result)
    extra.finish((), folder)
    return result


def _commit(index: Index, pairs: Sequence[Pair], vectors: Mapping[Modality, np.ndarray], result: TakenIn) -> None:
    """Adds the pictures of some pairs, together with the captions that earlier pairs gave them."""
    grouped: dict[str, list[int]] = {}
    for row, pair in enumerate(pairs):
        if pair.problem is None:
            grouped.setdefault(pair.columns["id"], []).append(row)
        else:
            result.left_out[pair.problem] = result.left_out.get(pair.problem, 0) + 1
    held = _captions_of(index, list(grouped))
    rows: list[dict[str, Any]] = []
    gone: list[str] = []
    for id, members in grouped.items():
        before, first = held.get(id, []), pairs[members[0]]
        # What modalloy exported says which caption comes first; of others' pairs each may add one.
        captions = before[: first.number or 0] if first.own else list(before)
        shared = {name: value for name, value in first.columns.items() if name not in _LOOKS} | {"picture_id": id}
        written: set[int] = set()
        for row in members:
            if (caption := pairs[row].caption) is None:
                continue
            if first.own or caption not in captions:
                captions.append(caption)
            number = len(captions) - 1 if first.own else captions.index(caption)
            if (vector := _vector(vectors.get("text"), row)) is not None and number not in written:
                written.add(number)
                own = {"id": f"{id}#{number}", "modality": "text", "captions": [caption], VECTOR["text"]: vector}
                rows.append(shared | own)
        image = _vector(vectors.get("image"), members[0])
        rows.append(
            first.columns | {"picture_id": id, "modality": "image", "captions": captions, VECTOR["image"]: image}
        )
        gone += [f"{id}#{number}" for number in range(len(captions), len(before))]
        result.captions += len(written)
        result.pictures += 1
    if rows:
        index.commit(_table(rows, index.head.dim), gone)


def _table(rows: Sequence[Mapping[str, Any]], dim: int) -> pa.Table:
    kinds: dict[str, MetaKind] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(META) and value is not None:
                kinds[name.removeprefix(META)] = kind_of(value)
    schema = rows_schema(dim, kinds)
    try:
        return pa.table([pa.array([row.get(each.name) for row in rows], each.type) for each in schema], schema=schema)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"the metadata don't fit an index ({one_line(error)}).") from None


def _captions_of(index: Index, ids: Sequence[str]) -> dict[str, list[str]]:
    found = index.snapshot().rows(ids, ["id", "captions"])
    return {
        id: captions or [] for id, captions in zip(found["id"].to_pylist(), found["captions"].to_pylist(), strict=True)
    }


def _check_part(part: Part, dim: int, folder: Path) -> None:
    for modality, vectors in part.vectors.items():
        if vectors.shape[1] != dim:
            raise DataError(
                f"{folder}: the {modality} vectors are {vectors.shape[1]} long, but the encoder's {dim}; name the "
                "encoder that made them."
            )
        if not np.isfinite(vectors).all():
            raise DataError(f"{folder}: an {modality} vector isn't finite; export them again.")


def _unit(vectors: np.ndarray, result: TakenIn, folder: Path) -> np.ndarray:
    """In float32, of unit norm; the bits of those that are stay."""
    vectors = np.array(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    off = (np.abs(norms - 1) > UNIT) & (norms > 0)
    vectors[off] /= norms[off, None]
    result.normalised += int(off.sum())
    return vectors


def _vector(vectors: np.ndarray | None, row: int) -> np.ndarray | None:
    """A row's vector; zeros are none."""
    return vectors[row] if vectors is not None and vectors[row].any() else None
