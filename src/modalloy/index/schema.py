"""The rows of an index: one for each picture and one for each caption, in one table, so that a commit is one.

A picture has an `image_vector` and a caption a `text_vector`; the other one is null, and so never found. What users
know of a picture besides stands in columns of its own, `meta_NAME`, which captions have too, so that both can be
filtered.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from modalloy.data.metadata import MetaKind as MetaKind
from modalloy.data.metadata import MetaValue, as_written
from modalloy.data.metadata import check_field as check_field
from modalloy.encoders import Modality

VECTOR: Mapping[Modality, str] = {"image": "image_vector", "text": "text_vector"}
"""The column of each modality's retrieval vectors."""

META = "meta_"
"""What the columns of metadata begin with."""

META_TYPES: Mapping[MetaKind, pa.DataType] = {"text": pa.string(), "number": pa.float64(), "truth": pa.bool_()}
"""What metadata can be: a text, a number, or true or false."""

COLUMNS: Mapping[str, pa.DataType] = {
    # The picture's id, or "<picture's id>#<number>" of a caption; unique in the index.
    "id": pa.string(),
    # "image" or "text".
    "modality": pa.string(),
    # Of the picture, also in the rows of its captions.
    "picture_id": pa.string(),
    # The name of the source that it came from, see `Source`.
    "source": pa.string(),
    # The picture's file, relative to its source's root, with "/".
    "path": pa.string(),
    # Of the picture's file; with its size and time it tells whether the file changed.
    "sha256": pa.string(),
    "bytes": pa.int64(),
    "modified_ns": pa.int64(),
    "split": pa.string(),
    # All captions of a picture; of a caption its text alone.
    "captions": pa.list_(pa.string()),
    # In pixels, of the upright picture; null for captions.
    "width": pa.int32(),
    "height": pa.int32(),
    # A small JPEG, null for captions.
    "thumbnail": pa.binary(),
}
"""The columns besides vectors and metadata, and their types."""

FILTERED = ("id", "modality", "picture_id", "source", "path", "split", "width", "height", "bytes")
"""The columns besides metadata that a condition can be about."""


def rows_schema(dim: int, metadata: Mapping[str, MetaKind] | None = None) -> pa.Schema:
    """The schema of an index's rows.

    Args:
        dim: length of a retrieval vector.
        metadata: the kinds of the users' fields, by name.

    Raises:
        DataError: a field's name can't be a column's.

    >>> rows_schema(4, {"camera": "text"}).field("meta_camera").type
    DataType(string)
    """
    for name in metadata or {}:
        check_field(name)
    return pa.schema(
        [
            *COLUMNS.items(),
            *((column, pa.list_(pa.float32(), dim)) for column in VECTOR.values()),
            *((META + name, META_TYPES[kind]) for name, kind in (metadata or {}).items()),
        ]
    )


def metadata_columns(fields: Iterable[str]) -> list[str]:
    """The columns that hold the users' fields.

    >>> metadata_columns(["year", "camera"])
    ['meta_year', 'meta_camera']
    """
    return [META + name for name in fields]


def metadata_of(row: Mapping[str, Any], fields: Iterable[str]) -> dict[str, MetaValue | int]:
    """What users know of a row's picture, as they write it; a field that is null is left out.

    >>> metadata_of({"id": "a", "meta_year": 2021.0, "meta_camera": None}, ["year", "camera"])
    {'year': 2021}
    """
    return {name: as_written(value) for name in fields if (value := row[META + name]) is not None}


def metadata_kinds(schema: pa.Schema) -> dict[str, MetaKind]:
    """The users' fields of a schema and their kinds.

    >>> metadata_kinds(rows_schema(4, {"year": "number"}))
    {'year': 'number'}
    """
    kinds = {kind: name for name, kind in META_TYPES.items()}
    return {field.name.removeprefix(META): kinds[field.type] for field in schema if field.name.startswith(META)}
