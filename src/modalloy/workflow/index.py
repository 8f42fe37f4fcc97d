"""The index by which a run's, or an alloy's, folder is searched."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from modalloy.data import Item, Manifest, open_image
from modalloy.encoders import Encoder
from modalloy.errors import CheckpointError, ConfigError, ImageError
from modalloy.index import Head, Index, Source, create_index, open_index, writer_lock
from modalloy.index.encoder_spec import spec_from
from modalloy.index.schema import VECTOR, rows_schema
from modalloy.index.thumbnails import thumbnail_of
from modalloy.progress import track
from modalloy.search import INDEX, Searcher
from modalloy.workflow.features import Collection

_COMMIT = 2048
"""Pictures of a commit."""
_BAR_FROM = 500


def index(encoder: Encoder, collection: Collection, folder: str | Path, source: Source | None = None) -> Searcher:
    """Makes an index of all pictures and captions of a collection, in `folder`, from stored features.

    Pictures without an embedding, and their captions, aren't in it. One that was there answers until this one is whole.

    Args:
        encoder: a dual encoder, saved.
        collection: what to search; features that aren't stored yet are extracted or computed.
        folder: the run directory, or the alloy's folder.
        source: where the collection comes from; by default the folder of its pictures.

    Raises:
        ConfigError: the encoder doesn't embed both pictures and texts.
    """
    if len(encoder.modalities) < 2:
        raise ConfigError(f"{encoder.spec} encodes only {encoder.modalities[0]}s, so it can't fill an index.")
    manifest, location = collection.manifest, str((Path(folder) / INDEX).resolve())
    root = str(manifest.root.resolve())
    head = Head(
        spec=spec_from(encoder.spec, location),
        fingerprints={modality: encoder.fingerprint(modality) for modality in encoder.modalities},
        dim=encoder.dim("image"),
        sources=(source or Source("", root, None, root),),
    )
    images, texts = (collection.store(encoder, each).embeddings(slice(None)) for each in ("image", "text"))
    with writer_lock(location):
        begun, target = _begun(location, head)
        held = (id for batch in target.snapshot().scan(["id"]) for id in batch.column("id").to_pylist())
        wanted = {*manifest.image_ids, *manifest.caption_ids}
        # An attempt that was killed may have held more.
        left_over = [id for id in held if id not in wanted]
        if left_over:
            target.commit(removed=left_over)
        for rows in _commits(manifest, images, texts, head.dim):
            target.commit(rows)
        target.optimize()
        if begun:
            target.switch()
    return Searcher(open_index(location), encoder)


def _begun(location: str, head: Head) -> tuple[bool, Index]:
    """The next generation of the index there, or a new one."""
    try:
        return True, open_index(location).begin(head)
    except CheckpointError:
        # There is none, or a damaged one, of which nothing is worth keeping: it is made of stored features.
        for table in Path(location).glob("*.lance"):
            shutil.rmtree(table)
        return False, create_index(location, head)


def _commits(
    manifest: Manifest, images: Float[Tensor, "images dim"], texts: Float[Tensor, "captions dim"], dim: int
) -> Iterator[pa.Table]:
    """The rows of all pictures that have an embedding, some at a time."""
    usable, first = images.isfinite().all(1).tolist(), 0
    rows = list[dict[str, Any]]()
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(manifest), _COMMIT):
            items = manifest.items[start : start + _COMMIT]
            kept = [item for item, has in zip(items, usable[start:], strict=False) if has]
            looked = pool.map(partial(_looks, manifest), kept)
            looks = track(looked, "indexing pictures", len(kept), shown_from=_BAR_FROM)
            for row, item in enumerate(items, start=start):
                captions = texts[first : first + len(item.captions)]
                first += len(item.captions)
                if usable[row]:
                    rows += _rows(item, next(looks), images[row], captions)
            yield pa.Table.from_pylist(rows, rows_schema(dim))
            rows.clear()


def _rows(
    item: Item, looks: dict[str, Any], image: Float[Tensor, "dim"], texts: Float[Tensor, "captions dim"]
) -> Iterator[dict[str, Any]]:
    """The rows of a picture and of those of its captions that have an embedding."""
    file = {name: looks.pop(name) for name in ("bytes", "modified_ns")}
    shared = {
        "picture_id": item.id,
        "source": "",
        "path": item.path,
        "sha256": item.sha256,
        "split": item.split,
        **file,
    }
    vector = {VECTOR["image"]: image.float().numpy()}
    yield {**shared, "id": item.id, "modality": "image", "captions": item.captions, **vector, **looks}
    for id, caption, text in zip(item.caption_ids, item.captions, texts, strict=True):
        if text.isfinite().all():
            vector = {VECTOR["text"]: text.float().numpy()}
            yield {**shared, "id": id, "modality": "text", "captions": [caption], **vector}


def _looks(manifest: Manifest, item: Item) -> dict[str, Any]:
    """What an index keeps of a picture's file; nulls where it isn't there any more, or is in a tar."""
    path = manifest.absolute(item)
    found = dict[str, Any].fromkeys(("bytes", "modified_ns", "width", "height", "thumbnail"))
    if path.is_file():
        status = path.stat()
        found |= {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
    try:
        picture = open_image(path)
    except ImageError:
        # Features made elsewhere may come without their pictures.
        return found
    return found | {"width": picture.width, "height": picture.height, "thumbnail": thumbnail_of(picture)}
