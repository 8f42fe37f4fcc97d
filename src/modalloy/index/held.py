"""Rows of an index as pictures, and pictures as rows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from modalloy.data.known_files import FileState
from modalloy.data.metadata import MetaKind, kind_of
from modalloy.errors import DataError
from modalloy.index.base import Snapshot
from modalloy.index.changes import Picture
from modalloy.index.condition import Condition
from modalloy.index.schema import META, metadata_columns, rows_schema

_COLUMNS = ("id", "path", "sha256", "bytes", "modified_ns", "split", "captions")


def held_pictures(snapshot: Snapshot, source: str) -> dict[str, Picture]:
    """The pictures of a source that an index holds, by id.

    Args:
        snapshot: of the index.
        source: the source's name.
    """
    fields = list(snapshot.metadata)
    columns = [*_COLUMNS, *metadata_columns(fields)]
    where = [Condition("source", "=", source), Condition("modality", "=", "image")]
    held = {}
    for batch in snapshot.scan(columns, where):
        for row in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
            id, path, sha256, size, modified_ns, split, captions = row[: len(_COLUMNS)]
            metadata = {
                name: value for name, value in zip(fields, row[len(_COLUMNS) :], strict=True) if value is not None
            }
            held[id] = Picture(id, path, FileState(size, modified_ns, sha256), split, tuple(captions or ()), metadata)
    return held


def captions_without_rows(snapshot: Snapshot, source: str, held: Mapping[str, Picture]) -> set[str]:
    """The ids of a source's captions that have no row: the encoder refused them, or they were lost.

    Args:
        snapshot: of the index.
        source: the source's name.
        held: its pictures, by id.
    """
    where = [Condition("source", "=", source), Condition("modality", "=", "text")]
    present = {id for batch in snapshot.scan(["id"], where) for id in batch["id"].to_pylist()}
    return {id for picture in held.values() for id in picture.caption_ids if id not in present}


def rows_of(picture: Picture, source: str, image: Mapping[str, Any], texts: Sequence[Any]) -> list[dict[str, Any]]:
    """A picture's row and those of its captions.

    Args:
        picture: what is known of it.
        source: its source's name.
        image: the picture's `image_vector`, `width`, `height` and `thumbnail`.
        texts: each caption's vector; one without a vector has no row.
    """
    shared = {
        "picture_id": picture.id,
        "source": source,
        "path": picture.path,
        "sha256": picture.file.sha256,
        "bytes": picture.file.bytes,
        "modified_ns": picture.file.modified_ns,
        "split": picture.split,
        **{META + name: value for name, value in picture.metadata.items()},
    }
    rows = [{**shared, "id": picture.id, "modality": "image", "captions": picture.captions, **image}]
    for id, caption, vector in zip(picture.caption_ids, picture.captions, texts, strict=True):
        if vector is not None:
            rows.append({**shared, "id": id, "modality": "text", "captions": [caption], "text_vector": vector})
    return rows


def table_of(rows: Sequence[Mapping[str, Any]], dim: int, metadata: Mapping[str, MetaKind]) -> pa.Table:
    """The rows as an index takes them.

    Args:
        rows: by column; a column that one lacks is null.
        dim: length of a vector.
        metadata: the kinds of all fields of metadata.
    """
    schema = rows_schema(dim, metadata)
    return pa.table([pa.array([row.get(column.name) for row in rows], column.type) for column in schema], schema=schema)


def merged_kinds(known: Mapping[str, MetaKind], pictures: Iterable[Picture]) -> dict[str, MetaKind]:
    """The kinds of an index's fields together with those of further pictures.

    Raises:
        DataError: a field is of two kinds.
    """
    kinds = dict(known)
    for picture in pictures:
        for name, value in picture.metadata.items():
            kind = kind_of(value)
            if kinds.setdefault(name, kind) != kind:
                raise DataError(
                    f"picture {picture.id!r}: the field {name!r} is a {kinds[name]} in the index, got {value!r}; "
                    "give it that kind everywhere, or another name."
                )
    return kinds
