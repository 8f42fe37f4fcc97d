"""Small indexes of vectors, and of the coloured pictures."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from index.memory_index import MemoryIndex
from torch import Tensor

from modalloy.data import Manifest
from modalloy.encoders import Encoder, Fingerprint
from modalloy.index import Head, Source
from modalloy.index.schema import META, VECTOR, rows_schema

PRINT = Fingerprint("toy", "1", "a" * 64, "b" * 64)


def head_of(dim: int, **others: Any) -> Head:
    return Head("toy", {"image": PRINT, "text": PRINT}, dim, **others)


def rows_of(vectors: Mapping[str, Tensor], more: Mapping[str, Mapping[str, Any]] | None = None) -> pa.Table:
    """Rows of pictures and, where the id has a "#", of captions, with more columns of some."""
    rows, fields = [], {}
    for id, vector in vectors.items():
        modality, picture_id = ("text" if "#" in id else "image"), id.partition("#")[0]
        row = {"id": id, "modality": modality, "picture_id": picture_id, VECTOR[modality]: vector.tolist()}
        rows.append(row | dict((more or {}).get(id, {})))
        for name, value in rows[-1].items():
            if name.startswith(META):
                fields[name.removeprefix(META)] = {str: "text", float: "number", bool: "truth"}[type(value)]
    return pa.Table.from_pylist(rows, rows_schema(len(next(iter(vectors.values()))), fields))


def coloured_index(encoder: Encoder, collection: Manifest) -> MemoryIndex:
    """All pictures and captions of a collection."""
    prints = {modality: encoder.fingerprint(modality) for modality in encoder.modalities}
    root = str(collection.root)
    index = MemoryIndex(Head(encoder.spec, prints, encoder.dim("image"), (Source("", root, None, root),)))
    shown = {"source": "", "split": "test"}
    images = encoder.encode_images([collection.absolute(item) for item in collection]).embedding
    vectors, more = dict(zip(collection.image_ids, images, strict=True)), {}
    for item in collection:
        more[item.id] = {**shown, "path": item.path, "sha256": item.sha256, "width": 8, "height": 8}
        more[item.id] |= {"captions": list(item.captions), "meta_letters": float(len(item.id))}
        for number, caption in enumerate(item.captions):
            more[f"{item.id}#{number}"] = {**shown, "path": item.path, "captions": [caption], "meta_letters": 1.0}
    if "text" in encoder.modalities:
        texts = encoder.encode_texts(collection.captions).embedding
        vectors |= dict(zip(collection.caption_ids, texts, strict=True))
    index.commit(rows_of(vectors, more))
    return index
