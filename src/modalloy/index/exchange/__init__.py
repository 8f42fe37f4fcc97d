"""Peers' formats: an index's vectors and metadata as others' tools read them, and theirs as an index."""
