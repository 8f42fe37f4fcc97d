"""What is made of the columns that a snapshot gives."""

from collections.abc import Sequence

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor


def vectors_in(rows: pa.Table | pa.RecordBatch, column: str) -> Float[Tensor, "rows dim"]:
    """A column of vectors, none of which is null, as float32.

    >>> column = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 0.0, 0.0, 1.0], pa.float32()), 2)
    >>> vectors_in(pa.table({"image_vector": column}), "image_vector")
    tensor([[1., 0.],
            [0., 1.]])
    """
    found = rows.column(column)
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    dim = found.type.list_size
    # Of a slice, flatten gives its own values. A copy, since torch takes no read-only memory.
    return torch.tensor(found.flatten().to_numpy(zero_copy_only=False), dtype=torch.float32).view(-1, dim)


def in_order(rows: pa.Table, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Some columns of rows in the order of `ids`; ids that aren't there are left out.

    >>> in_order(pa.table({"id": ["a", "b"], "width": [1, 2]}), ["b", "c", "a"], ["width"])["width"].to_pylist()
    [2, 1]
    """
    place = {id: place for place, id in enumerate(rows["id"].to_pylist())}
    return rows.take(pa.array([place[id] for id in ids if id in place], pa.int64())).select(list(columns))
