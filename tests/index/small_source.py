"""A folder of small pictures as a source, an encoder that counts what it embeds, and rows to be compared."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from modalloy.data import read_collection
from modalloy.encoders import Encoded, Encoder, Fingerprint
from modalloy.index import Source
from modalloy.index.sync import SyncConfig, sync

DIM = 4


class CountingEncoder(Encoder):
    """A picture's vector is its mean colour, a text's is made of its digest."""

    modalities = ("image", "text")

    def __init__(self, weights="a"):
        self.name = self.spec = f"counting-{weights}"
        self.weights = weights
        self.embedded = []

    def fingerprint(self, modality):
        return Fingerprint(f"{self.spec} {modality}", "1", self.weights * 64, "b" * 64)

    def dim(self, modality):
        return DIM

    def width(self, modality):
        return DIM

    def preprocess(self, modality, item):
        if modality == "image":
            return torch.tensor([*map(float, np.asarray(item).mean((0, 1))), float(ord(self.weights))])
        return torch.tensor([float(each) for each in hashlib.sha256(item.encode()).digest()[:DIM]])

    def forward(self, modality, prepared):
        self.embedded += [modality] * len(prepared)
        vectors = normalize(torch.stack(list(prepared)) + 1, dim=-1)
        return Encoded(vectors, vectors, torch.ones(len(vectors), dtype=torch.int64))

    def calls(self):
        """How many pictures and captions were embedded since this was asked."""
        counts = self.embedded.count("image"), self.embedded.count("text")
        self.embedded.clear()
        return counts


def write_picture(path: Path, colour: int, captions=None) -> Path:
    """A picture of its own content for each colour, with a sidecar of captions if there are any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (colour % 256, colour // 256, 7)).save(path)
    if captions is not None:
        path.with_suffix(".txt").write_text("\n".join(captions))
    return path


def bring(index, encoder, folder: Path, name="", **options):
    """Syncs the index with a folder."""
    source = Source(name, str(folder), None, str(folder))
    return sync(index, encoder, source, lambda known: read_collection(folder, known_files=known), SyncConfig(**options))


def rows_in(index, but=()):
    """All rows of an index by id, but some columns."""
    snapshot = index.snapshot()
    columns = ["id", "modality", "picture_id", "source", "path", "sha256", "bytes", "modified_ns", "split"]
    columns += ["captions", "width", "height", "thumbnail", "image_vector", "text_vector"]
    columns = [name for name in columns if name not in but]
    rows = {}
    for batch in snapshot.scan(columns):
        for row in batch.to_pylist():
            for name in ("image_vector", "text_vector"):
                row[name] = None if row[name] is None else tuple(np.float32(row[name]))
            assert rows.setdefault(row["id"], row) is row, "an id repeats"
    return rows


def make_unreadable(path: Path) -> None:
    """Cuts a picture off: its header stays whole, so that only decoding finds it."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 25])


def age(path: Path, seconds=100) -> None:
    """Sets a file's time back."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9))
