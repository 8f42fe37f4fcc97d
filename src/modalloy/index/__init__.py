"""The index: a durable store of pictures, captions and their retrieval vectors, in a folder, a bucket or a cluster."""

from modalloy.index.base import Found, Head, Index, Snapshot, Source
from modalloy.index.condition import Condition, parse_condition

__all__ = ["Condition", "Found", "Head", "Index", "Snapshot", "Source", "parse_condition"]
