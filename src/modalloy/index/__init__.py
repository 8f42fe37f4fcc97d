"""The index: a durable store of pictures, captions and their retrieval vectors, in a folder, a bucket or a cluster."""

from modalloy.index.base import Found, Head, Index, Snapshot, Source
from modalloy.index.condition import Condition, parse_condition
from modalloy.index.lock import writer_lock
from modalloy.index.opening import create_index, open_index

__all__ = [
    "Condition",
    "Found",
    "Head",
    "Index",
    "Snapshot",
    "Source",
    "create_index",
    "open_index",
    "parse_condition",
    "writer_lock",
]
