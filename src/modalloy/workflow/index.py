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
from modalloy.data.known_files import FileState, KnownFiles
from modalloy.encoders import Encoder
from modalloy.errors import CheckpointError, ImageError
from modalloy.index import Head, Index, Source, create_index, open_index, writer_lock
from modalloy.index.changes import Picture
from modalloy.index.encoder_spec import head_of
from modalloy.index.held import merged_kinds, rows_of, table_of
from modalloy.index.schema import VECTOR
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
        ConfigError: the encoder doesn't embed pictures and texts in one space.
        DataError: a field of the metadata is of two kinds.
    """
    manifest, location = collection.manifest, str((Path(folder) / INDEX).resolve())
    root = str(manifest.root.resolve())
    head = head_of(encoder, location).with_source(source or Source("", root, None, root))
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
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(manifest), _COMMIT):
            items, rows, pictures = manifest.items[start : start + _COMMIT], list[dict[str, Any]](), list[Picture]()
            kept = [item for item, has in zip(items, usable[start:], strict=False) if has]
            looked = pool.map(partial(_looks, manifest), kept)
            looks = track(looked, "indexing pictures", len(kept), shown_from=_BAR_FROM)
            for row, item in enumerate(items, start=start):
                captions = texts[first : first + len(item.captions)]
                first += len(item.captions)
                if usable[row]:
                    file, columns = next(looks)
                    picture = Picture(item.id, item.path, file, item.split, item.captions, item.metadata)
                    columns[VECTOR["image"]] = images[row].float().numpy()
                    vectors = [text.float().numpy() if text.isfinite().all() else None for text in captions]
                    rows += rows_of(picture, "", columns, vectors)
                    pictures.append(picture)
            yield table_of(rows, dim, merged_kinds({}, pictures))


def _looks(manifest: Manifest, item: Item) -> tuple[FileState, dict[str, Any]]:
    """What an index keeps of a picture's file; nothing where it isn't any more what the features were made of."""
    try:
        file = KnownFiles().look(manifest.root, item.path)
        if file.sha256 == item.sha256:
            picture = open_image(manifest.absolute(item))
            return file, {"width": picture.width, "height": picture.height, "thumbnail": thumbnail_of(picture)}
    except ImageError:
        # Features made elsewhere may come without their pictures.
        pass
    return FileState(None, None, item.sha256), {}
