"""What every store checks of what it is given, before it does anything."""

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from modalloy.errors import ConfigError, DataError, one_line
from modalloy.index.base import Head
from modalloy.index.schema import META, META_TYPES, MetaKind, check_field, rows_schema


def check_queries(queries: Float[Tensor, "queries dim"], k: int, head: Head) -> Float[Tensor, "queries dim"]:
    """Gives queries back in float32 on the CPU, if an index can be asked for their `k` best.

    Raises:
        ConfigError: `k` is below 1.
        DataError: a query isn't finite, or of another length than the index's vectors.
    """
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}.")
    if queries.shape[1] != head.dim:
        raise DataError(
            f"the index's vectors are {head.dim} long, but the queries {queries.shape[1]}; make them with the index's "
            f"encoder, {head.spec}."
        )
    if not queries.isfinite().all():
        unusable = int((~queries.isfinite().all(dim=1)).nonzero()[0])
        raise DataError(f"query {unusable} holds NaN or infinity, so nothing compares with it.")
    return queries.detach().cpu().float()


def merged_metadata(rows: pa.Table, metadata: Mapping[str, MetaKind]) -> dict[str, MetaKind]:
    """The index's fields of metadata and those that rows bring.

    Raises:
        DataError: a field has another kind in the rows, one that metadata can't have, or a name it can't have.

    >>> merged_metadata(pa.table({"id": ["a"], "meta_year": [2020.0]}), {"camera": "text"})
    {'camera': 'text', 'year': 'number'}
    """
    kinds = {type: kind for kind, type in META_TYPES.items()}
    merged = dict(metadata)
    for column in rows.schema:
        if column.name.startswith(META):
            name = column.name.removeprefix(META)
            check_field(name)
            kind = kinds.get(column.type)
            if kind is None or merged.setdefault(name, kind) != kind:
                expected = merged.get(name, "text, number or truth value")
                raise DataError(f"the rows don't fit the index: {name} must be a {expected}, got {column.type}.")
    return merged


def fitting_rows(rows: pa.Table, dim: int, metadata: Mapping[str, MetaKind]) -> pa.Table:
    """The rows with all columns of an index; fields of metadata that they lack are null.

    Raises:
        DataError: a column is missing, unknown or of another type, an id is missing or repeats.
    """
    schema = rows_schema(dim, metadata)
    unknown = [column for column in rows.column_names if column not in schema.names]
    if unknown:
        raise DataError(f"the rows have a column {unknown[0]!r}, which an index doesn't; name metadata {META}NAME.")
    for field in schema:
        if field.name.startswith(META) and field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    try:
        rows = rows.select(schema.names).cast(schema)
    except (KeyError, pa.ArrowException) as error:
        raise DataError(f"the rows don't fit the index, whose vectors are {dim} long: {one_line(error)}") from None
    ids = rows["id"].to_pylist()
    repeated = [id for id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(f"ids must be unique, got {repeated[0]!r} more than once.")
    if not all(ids):
        raise DataError(f"the rows don't fit the index: row {[bool(id) for id in ids].index(False)} has no id.")
    return rows
