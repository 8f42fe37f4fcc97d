"""Small rows of an index: pictures p0, p1, ..., each with a caption, and random unit vectors."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from modalloy.encoders import Fingerprint
from modalloy.encoders.base import MODALITIES
from modalloy.index import Head
from modalloy.index.schema import META, MetaKind, rows_schema

DIM = 8


def toy_head(weights: str = "0", dim: int = DIM) -> Head:
    made_by = Fingerprint("toy", "1", weights * 64, "0" * 64)
    return Head("toy", dict.fromkeys(MODALITIES, made_by), dim)


def unit_vectors(count: int, dim: int = DIM, seed: int = 0) -> Float[Tensor, "count dim"]:
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def toy_rows(
    ids: Sequence[str],
    images: Float[Tensor, "pictures dim"],
    texts: Float[Tensor, "pictures dim"] | None = None,
    metadata: Mapping[str, tuple[MetaKind, Sequence[Any]]] | None = None,
) -> pa.Table:
    """One row for each picture and, where `texts` are given, one for a caption of each."""
    fields, rows = metadata or {}, []
    for place, id in enumerate(ids):
        common = {
            "picture_id": id, "source": "", "path": f"{id}.png", "sha256": f"{place:064x}", "bytes": 10,
            "modified_ns": 1, "split": "train", "captions": [f"about {id}"],
            **{META + name: values[place] for name, (_, values) in fields.items()},
        }  # fmt: skip
        picture = {"id": id, "modality": "image", "width": 4, "height": 3, "thumbnail": b"jpeg"}
        rows.append({**common, **picture, "image_vector": images[place].tolist()})
        if texts is not None:
            rows.append({**common, "id": f"{id}#0", "modality": "text", "text_vector": texts[place].tolist()})
    return pa.Table.from_pylist(rows, rows_schema(images.shape[1], {name: kind for name, (kind, _) in fields.items()}))
