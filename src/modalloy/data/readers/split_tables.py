"""Reads folders named after splits, each with a table of its own: the image folders of Hugging Face's `datasets`.

Source: https://huggingface.co/docs/datasets/image_dataset
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from modalloy.data.build import SPLIT_ALIASES, Record
from modalloy.data.readers.collection import Collection, id_of_path
from modalloy.data.readers.folder import image_paths
from modalloy.data.readers.table import read_csv, read_jsonl
from modalloy.errors import DataError

_TABLES = {"metadata.jsonl": read_jsonl, "metadata.csv": read_csv}


def split_tables(root: Path) -> list[Path]:
    """The `metadata.jsonl` or `metadata.csv` in each of a folder's own folders that is named after a split.

    Raises:
        DataError: one of these folders has two tables, or pictures without one while others have one.
    """
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and folder.name.lower() in SPLIT_ALIASES]
    tables = {folder: [folder / name for name in _TABLES if (folder / name).is_file()] for folder in folders}
    found = [table for folder in folders for table in tables[folder]]
    for folder in folders if found else ():
        if len(tables[folder]) > 1:
            raise DataError(f"{folder} holds both {' and '.join(_TABLES)}; keep one.")
        if not tables[folder] and (picture := next(image_paths(folder), None)) is not None:
            raise DataError(
                f"{folder} holds pictures ({picture}, ...) but no {found[0].name}, unlike {found[0].parent}."
            )
    return found


def is_split_table(file: Path, root: Path) -> bool:
    """Whether a file is such a table, of a folder in `root`."""
    return file.name in _TABLES and file.parent.name.lower() in SPLIT_ALIASES and file.parent.parent == root


def read_split_tables(tables: Sequence[Path], root: Path) -> Collection:
    """Reads the tables as one collection: a row's path starts from its table's folder, whose name is the split.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "test").mkdir()
    >>> _ = (root / "test" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "A cat."}')
    >>> read_split_tables(split_tables(root), root).records
    (Record(id='test:a.png', path='test/a.png', split='test', captions=('A cat.',), family=None),)

    Raises:
        DataError: a table can't be read, or a row can't be used (named FILE:LINE).
    """
    return Collection(root, tuple(record for table in tables for record in _records(table)))


def _records(table: Path) -> Iterator[Record]:
    split = table.parent.name
    for record in _TABLES[table.name](table, split=split).records:
        path = f"{split}/{record.path.removeprefix('./')}"
        # An id of the row's own is kept.
        yield replace(record, path=path, id=id_of_path(path) if record.id == id_of_path(record.path) else record.id)
