"""clip-retrieval's layout: vectors as .npy, metadata as parquet, in numbered parts.

Source: R. Beaumont, "clip-retrieval", https://github.com/rom1504/clip-retrieval, its clip_inference/writer.py:
`img_emb/img_emb_0000.npy`, `text_emb/text_emb_0000.npy` and `metadata/metadata_0000.parquet` with the columns
`image_path` and `caption`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modalloy.encoders import Modality
from modalloy.errors import DataError, one_line
from modalloy.files import atomic_path
from modalloy.index.base import Snapshot
from modalloy.index.exchange.folder import new_folder
from modalloy.index.exchange.pairs import ROWS, Part, pair_parts

FOLDERS: dict[Modality, str] = {"image": "img_emb", "text": "text_emb"}
"""Where each modality's vectors are."""

BATCH = 4096
"""Rows that are read at once."""


def export_npy_parquet(
    snapshot: Snapshot, folder: str | Path, *, rows: int = ROWS, half: bool = False
) -> dict[str, Any]:
    """Writes an index in clip-retrieval's layout, part by part.

    Args:
        snapshot: of the index.
        folder: a new one.
        rows: of a part.
        half: write float16, as clip-retrieval does, instead of float32.

    Raises:
        ConfigError: there is something at `folder` already.
    """
    with new_folder(folder, snapshot.head) as (temporary, said):
        said |= {"kind": "npy-parquet", "parts": 0, "rows": 0, "dtype": "float16" if half else "float32"}
        for part in pair_parts(snapshot, rows):
            write_table(temporary, said["parts"], part.table)
            for modality, vectors in part.vectors.items():
                name = FOLDERS[modality]
                with atomic_path(temporary / name / f"{name}_{said['parts']:04}.npy") as path, path.open("wb") as file:
                    np.save(file, vectors.astype(said["dtype"]), allow_pickle=False)
            said["parts"] += 1
            said["rows"] += len(part.table)
        return {"folder": str(folder), **said}


def read_npy_parquet(folder: Path) -> Iterator[Part]:
    """The pairs of a folder in clip-retrieval's layout, some at a time.

    Raises:
        DataError: the folder isn't in that layout, or its files don't fit each other.
    """
    paths = metadata_files(folder)
    for path in paths:
        number = path.stem.removeprefix("metadata_")
        arrays = {
            modality: _array(file)
            for modality, name in FOLDERS.items()
            if (file := folder / name / f"{name}_{number}.npy").is_file()
        }
        if not arrays:
            raise DataError(f"{path} has no vectors: neither img_emb_{number}.npy nor text_emb_{number}.npy is there.")
        rows = _rows_of(path)
        for modality, array in arrays.items():
            if len(array) != rows:
                raise DataError(
                    f"{path} has {rows:,} rows, but its {FOLDERS[modality]} {len(array):,}; export it again."
                )
        start = 0
        for table in tables_of(path):
            stop = start + len(table)
            yield Part(table, {modality: np.asarray(array[start:stop]) for modality, array in arrays.items()})
            start = stop


def write_table(folder: Path, number: int, table: pa.Table) -> None:
    """Writes a part's metadata."""
    with atomic_path(folder / "metadata" / f"metadata_{number:04}.parquet") as path:
        pq.write_table(table, path)


def metadata_files(folder: Path) -> list[Path]:
    """The metadata's parts, in order.

    Raises:
        DataError: there is none.
    """
    paths = sorted((folder / "metadata").glob("metadata_*.parquet"), key=lambda path: (len(path.stem), path.stem))
    if not paths:
        raise DataError(f"{folder} holds no metadata/metadata_0000.parquet; is it a folder of clip-retrieval's?")
    return paths


def tables_of(path: Path) -> Iterator[pa.Table]:
    """A parquet file's rows, some at a time.

    Raises:
        DataError: it can't be read.
    """
    with _damage(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH):
            yield pa.Table.from_batches([batch])


def _rows_of(path: Path) -> int:
    with _damage(path):
        return int(pq.read_metadata(path).num_rows)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} can't be read as parquet ({one_line(error)}); it may be damaged.") from None


def _array(path: Path) -> np.ndarray:
    try:
        # Unlike numpy.load, it opens no archives and no pickles, which could run anything.
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} can't be read as vectors ({one_line(error)}); it may be damaged.") from None
    if array.ndim != 2 or array.dtype not in (np.float16, np.float32):
        raise DataError(f"{path} must hold float16 or float32 vectors, rows x dim, got {array.dtype} {array.shape}.")
    return array
