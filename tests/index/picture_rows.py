"""Rows of small pictures that exist, with random vectors, as an index holds them."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from modalloy.encoders import Fingerprint
from modalloy.files import sha256_of
from modalloy.index import Head, Source
from modalloy.index.schema import META, rows_schema

DIM = 6
KINDS = {"camera": "text", "year": "number", "indoors": "truth"}


def head(root: Path | str, spec: str = "toy", dim: int = DIM) -> Head:
    """Of an index whose pictures are in a folder."""
    made_by = {side: Fingerprint(f"{spec} {side}", "1", "a" * 64, "b" * 64) for side in ("image", "text")}
    return Head(spec, made_by, dim, (Source("", str(root), None, str(root)),))


def unit_vectors(rng: np.random.Generator, count: int, dim: int = DIM) -> np.ndarray:
    """Random ones of unit norm."""
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def picture_rows(root: Path, count: int, captions: int = 2, seed: int = 0) -> list[dict]:
    """The rows of some pictures, which are written below `root`, and those of their captions."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        path = root / "sub" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (8, 6), (number, 0, 0))
        image.save(path)
        thumbnail = io.BytesIO()
        image.save(thumbnail, "JPEG")
        id, texts = f"sub:{number}.png", [f"Caption {number}.{each}" for each in range(captions)]
        shared = {
            "picture_id": id,
            "source": "",
            "path": f"sub/{number}.png",
            "sha256": sha256_of(path),
            "bytes": path.stat().st_size,
            "modified_ns": path.stat().st_mtime_ns,
            "split": "train",
            META + "camera": "X100" if number % 2 else None,
            META + "year": 2000.0 + number,
            META + "indoors": number % 2 == 0,
        }
        looks = {"width": 8, "height": 6, "thumbnail": thumbnail.getvalue()}
        vectors = unit_vectors(rng, 1 + captions)
        rows.append({**shared, "id": id, "modality": "image", "captions": texts, "image_vector": vectors[0], **looks})
        for position, text in enumerate(texts):
            own = {"id": f"{id}#{position}", "captions": [text], "text_vector": vectors[1 + position]}
            rows.append({**shared, "modality": "text", **own})
    return rows


def table_of(rows: list[dict], dim: int = DIM) -> pa.Table:
    """As an index takes them."""
    schema = rows_schema(dim, KINDS)
    return pa.table([pa.array([row.get(column.name) for row in rows], column.type) for column in schema], schema=schema)
