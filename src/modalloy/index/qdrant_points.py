"""Rows of an index as points of a Qdrant collection, and back.

A point's payload has the row's columns except nulls and vectors; the thumbnail in base64, since a payload is JSON. Two
numbers more say from which state of the index on the row is there, and from which on it isn't any more.
"""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

import pyarrow as pa

from modalloy.encoders.base import MODALITIES
from modalloy.errors import DataError
from modalloy.index.condition import column_of
from modalloy.index.qdrant_filter import LOWER
from modalloy.index.schema import FILTERED, VECTOR, MetaKind, rows_schema

if TYPE_CHECKING:
    from qdrant_client import models

ADDED, REMOVED, REMOVED_AT = "_added", "_removed", "_removed_at"
NEVER = 2**53 - 1
"""What `REMOVED` says of a row that is there; JSON's numbers are exact up to here."""

_POINTS = UUID("6f6f1c0e-8f55-4d5c-9d5c-0d6f0d1b6a77")


def points_of(rows: pa.Table, version: int) -> "Iterator[models.PointStruct]":
    """The points of new rows, which are there from a version on.

    A row's next version is another point, so that the present one stays until nobody reads it.

    Raises:
        DataError: a number of the metadata isn't finite, so that JSON can't hold it.
    """
    from qdrant_client import models

    for row in rows.to_pylist():
        vectors = {modality: row.pop(column) for modality, column in VECTOR.items()}
        payload = {column: _as_json(row["id"], column, value) for column, value in row.items() if value is not None}
        texts = {column: value.lower() for column, value in payload.items() if _is_filtered_text(column, value)}
        yield models.PointStruct(
            id=str(uuid5(_POINTS, f"{version}/{row['id']}")),
            vector={modality: vector for modality, vector in vectors.items() if vector is not None},
            payload=payload | {LOWER: texts, ADDED: version, REMOVED: NEVER},
        )


def rows_of(
    records: "Sequence[models.Record]", columns: Sequence[str], dim: int, metadata: Mapping[str, MetaKind]
) -> pa.RecordBatch:
    """Some columns of points' rows.

    Raises:
        DataError: the index has no such column.
    """
    schema = rows_schema(dim, metadata)
    absent = [column for column in columns if column not in schema.names]
    if absent:
        raise DataError(f"the index has no column {absent[0]!r}, only {', '.join(schema.names)}.")
    arrays = [pa.array([_value(record, column) for record in records], schema.field(column).type) for column in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([schema.field(column) for column in columns]))


def selection(columns: Sequence[str]) -> dict[str, Any]:
    """What to ask the client for, to have some columns."""
    vectors = [modality for modality in MODALITIES if VECTOR[modality] in columns]
    payload = [column for column in columns if column not in VECTOR.values()]
    return {"with_vectors": vectors or False, "with_payload": payload or False}


def indexed_columns(metadata: Mapping[str, MetaKind]) -> "dict[str, Any]":
    """The payload's fields that searches and commits filter by, and how Qdrant indexes each."""
    from qdrant_client import models

    text = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, on_disk=True)
    kinds: dict[MetaKind, Any] = {
        "text": text,
        "number": models.PayloadSchemaType.FLOAT,
        "truth": models.PayloadSchemaType.BOOL,
    }
    whole = models.PayloadSchemaType.INTEGER
    schema = rows_schema(1)
    return {
        ADDED: whole,
        REMOVED: whole,
        **{column: text if schema.field(column).type == pa.string() else whole for column in FILTERED},
        **{column_of(field): kinds[kind] for field, kind in metadata.items() if field not in FILTERED},
    }


def _as_json(id: str, column: str, value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{id}: {column} is {value}; a number must be finite, so leave it out.")
    return value


def _is_filtered_text(column: str, value: Any) -> bool:
    return isinstance(value, str) and column not in ("sha256", "thumbnail")


def _value(record: "models.Record", column: str) -> Any:
    for modality, name in VECTOR.items():
        if column == name:
            return record.vector.get(modality) if isinstance(record.vector, dict) else None
    value = (record.payload or {}).get(column)
    return base64.b64decode(value) if column == "thumbnail" and value is not None else value
