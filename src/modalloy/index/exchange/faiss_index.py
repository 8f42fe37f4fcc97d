"""FAISS indexes with their metadata, as clip-retrieval and autofaiss lay them out: `image.index`, `text.index`.

The n-th row of `metadata/` belongs to the n-th vector of each. Exported ones compare every vector by its inner
product (IndexFlatIP); one of any kind is imported as long as FAISS can give its vectors back.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from modalloy.encoders import Modality
from modalloy.errors import ConfigError, DataError, one_line
from modalloy.files import atomic_path
from modalloy.index.base import Snapshot
from modalloy.index.exchange.folder import new_folder
from modalloy.index.exchange.npy_parquet import metadata_files, tables_of, write_table
from modalloy.index.exchange.pairs import ROWS, Part, pair_parts

NAMES: dict[Modality, str] = {"image": "image.index", "text": "text.index"}
"""The file of each modality."""


def export_faiss(snapshot: Snapshot, folder: str | Path, *, rows: int = ROWS) -> dict[str, Any]:
    """Writes an index as flat FAISS indexes, which FAISS holds in memory: 4 bytes a number.

    Args:
        snapshot: of the index.
        folder: a new one.
        rows: of a part of the metadata.

    Raises:
        ConfigError: FAISS isn't installed, or there is something at `folder` already.
    """
    faiss = _faiss()
    with new_folder(folder, snapshot.head) as (temporary, said):
        said |= {"kind": "faiss", "parts": 0, "rows": 0}
        indexes: dict[Modality, Any] = {}
        for part in pair_parts(snapshot, rows):
            write_table(temporary, said["parts"], part.table)
            for modality, vectors in part.vectors.items():
                indexes.setdefault(modality, faiss.IndexFlatIP(snapshot.head.dim)).add(np.ascontiguousarray(vectors))
            said["parts"] += 1
            said["rows"] += len(part.table)
        for modality, index in indexes.items():
            with atomic_path(temporary / NAMES[modality]) as path:
                faiss.write_index(index, str(path))
        return {"folder": str(folder), **said}


def read_faiss(folder: Path) -> Iterator[Part]:
    """The pairs of a folder of FAISS indexes, some at a time. FAISS itself checks little: open none that you distrust.

    Raises:
        ConfigError: FAISS isn't installed.
        DataError: there is no index, one can't give its vectors back, or the metadata don't fit.
    """
    indexes = {modality: _read(path) for modality, name in NAMES.items() if (path := folder / name).is_file()}
    if not indexes:
        raise DataError(f"{folder} holds neither image.index nor text.index.")
    start = 0
    for path in metadata_files(folder):
        for table in tables_of(path):
            vectors: dict[Modality, np.ndarray] = {}
            for modality, index in indexes.items():
                if start + len(table) > index.ntotal:
                    raise DataError(
                        f"{folder / NAMES[modality]} has {index.ntotal:,} vectors, fewer than metadata rows."
                    )
                with _failure(folder / NAMES[modality]):
                    vectors[modality] = index.reconstruct_n(start, len(table))
            yield Part(table, vectors)
            start += len(table)
    for modality, index in indexes.items():
        if index.ntotal != start:
            raise DataError(f"{folder / NAMES[modality]} has {index.ntotal:,} vectors, but {start:,} metadata rows.")


def _read(path: Path) -> Any:
    faiss = _faiss()
    with _failure(path):
        index = faiss.read_index(str(path))
        if isinstance(index, faiss.IndexPreTransform | faiss.IndexIVF):
            # Else an inverted file doesn't know where its vectors are.
            faiss.extract_index_ivf(index).make_direct_map()
        if index.ntotal:
            # Of several vectors it asks in threads, and what fails there ends the process.
            index.reconstruct(0)
        return index


def _faiss() -> Any:
    # It would tell of each set of the processor's instructions that it tries.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(f"FAISS's indexes need FAISS ({error}): pip install faiss-cpu.") from None
    return faiss


@contextmanager
def _failure(path: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError, AssertionError) as error:
        raise DataError(f"{path}: FAISS can't give its vectors back ({one_line(error)}).") from None
