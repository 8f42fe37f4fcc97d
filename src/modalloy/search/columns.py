"""Vectors out of an index's columns."""

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
    # A copy, since torch takes no read-only memory.
    return torch.tensor(found.flatten().to_numpy(zero_copy_only=False), dtype=torch.float32).view(-1, dim)
