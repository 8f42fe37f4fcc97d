"""An index as pairs of a picture and a caption, one a row, which is how clip-retrieval keeps vectors and metadata.

The n-th row of a part's metadata belongs to the n-th picture vector and the n-th text vector. So a picture with
several captions has several rows, and one without any has a row whose text vector is zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from modalloy.data.item import is_path
from modalloy.encoders import Modality
from modalloy.index.base import Snapshot
from modalloy.index.condition import Condition
from modalloy.index.schema import VECTOR, metadata_columns

IMAGE_PATH, CAPTION, NUMBER = "image_path", "caption", "caption_number"
"""The columns that peers have, and that of a caption's place among its picture's."""

OWN = ("id", "source", "path", "sha256", "bytes", "modified_ns", "split", "width", "height", "thumbnail")
"""The index's columns that each row repeats."""

ROWS = 50_000
"""Rows of a part, or somewhat more, so that no picture is in two."""

_PICTURES = Condition("modality", "=", "image")


@dataclass(slots=True)
class Part:
    """Some pairs."""

    table: pa.Table
    """Their metadata."""
    vectors: dict[Modality, np.ndarray] = field(default_factory=dict)
    """Their vectors, "rows dim"; a modality that there is nothing of is absent."""


def pair_parts(snapshot: Snapshot, rows: int = ROWS) -> Iterator[Part]:
    """All pictures of an index with their captions.

    Args:
        snapshot: of the index.
        rows: of a part.
    """
    texts = snapshot.count([Condition("modality", "=", "text")]) > 0
    gathered: list[Part] = []
    columns = [*OWN, "captions", VECTOR["image"], *metadata_columns(snapshot.metadata)]
    for batch in snapshot.scan(columns, [_PICTURES]):
        gathered.append(_pairs(snapshot, pa.Table.from_batches([batch]), texts))
        if sum(len(part.table) for part in gathered) >= rows:
            yield _joined(gathered)
            gathered = []
    if gathered:
        yield _joined(gathered)


def _pairs(snapshot: Snapshot, pictures: pa.Table, texts: bool) -> Part:
    captions = [found or () for found in pictures["captions"].to_pylist()]
    repeats = np.repeat(np.arange(len(pictures)), [max(1, len(found)) for found in captions])
    numbers = [number for found in captions for number in (range(len(found)) or [None])]
    table = pictures.drop_columns(["captions", VECTOR["image"]]).take(pa.array(repeats))
    roots = {source.name: source.root for source in snapshot.head.sources}
    places = zip(table["source"].to_pylist(), table["path"].to_pylist(), strict=True)
    table = table.append_column(IMAGE_PATH, pa.array([_place(roots.get(source), path) for source, path in places]))
    written = [caption for found in captions for caption in (found or ("",))]
    table = table.append_column(CAPTION, pa.array(written, pa.string()))
    table = table.append_column(NUMBER, pa.array(numbers, pa.int32()))
    part = Part(table, {"image": vectors_of(pictures[VECTOR["image"]], snapshot.head.dim)[repeats]})
    if texts:
        part.vectors["text"] = np.zeros((len(table), snapshot.head.dim), np.float32)
        pairs = enumerate(zip(table["id"].to_pylist(), numbers, strict=True))
        rows = {f"{id}#{number}": row for row, (id, number) in pairs if number is not None}
        found = snapshot.rows(list(rows), ["id", VECTOR["text"]])
        captioned = [rows[id] for id in found["id"].to_pylist()]
        part.vectors["text"][captioned] = vectors_of(found[VECTOR["text"]], snapshot.head.dim)
    return part


def vectors_of(column: pa.ChunkedArray, dim: int) -> Float[np.ndarray, "rows dim"]:
    """A column of vectors as an array; a null is zeros."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    vectors = np.zeros((len(array), dim), np.float32)
    present = array.is_valid().to_numpy(zero_copy_only=False)
    vectors[present] = array.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    return vectors


def _place(root: str | None, path: str | None) -> str:
    """A picture's absolute path; what isn't below its source's folder stays as it is."""
    return (Path(root) / str(path)).as_posix() if root is not None and is_path(path) else path or ""


def _joined(parts: list[Part]) -> Part:
    vectors = {modality: np.vstack([part.vectors[modality] for part in parts]) for modality in parts[0].vectors}
    return Part(pa.concat_tables([part.table for part in parts]), vectors)
