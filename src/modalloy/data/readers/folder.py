"""Reads a folder of images, with captions in sidecar text files or with none."""

import os
from collections.abc import Iterator
from pathlib import Path

from modalloy.data.build import SPLIT_ALIASES, Record
from modalloy.data.images import SUFFIXES
from modalloy.data.readers.collection import Collection, id_of_path, read_text
from modalloy.errors import DataError


def read_folder(folder: str | Path, split: str = "train") -> Collection:
    """Reads all images in a folder and its subfolders, in the order of their paths.

    The captions of `cat.jpg` are the lines of `cat.txt` beside it; without that file the image has none, and
    can still be indexed. Images under a top folder named after a split (`train`, `val`, `tune`, `test`,
    `validation`, ...) belong to that split, all others to `split`. An item's id is its path, ":" for "/".
    Hidden files are passed over, and links to folders aren't followed.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "test").mkdir()
    >>> Image.new("RGB", (4, 4)).save(root / "test" / "cat.png")
    >>> _ = (root / "test" / "cat.txt").write_text("A cat.\\nA black cat.\\n")
    >>> record, = read_folder(root).records
    >>> record.id, record.split, record.captions
    ('test:cat.png', 'test', ('A cat.', 'A black cat.'))

    Raises:
        DataError: the folder isn't there or holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"the folder {root} isn't there; check the path.")
    paths = sorted(image_paths(root))
    if not paths:
        raise DataError(f"{root} holds no images; a picture's name ends in one of {', '.join(SUFFIXES)}.")
    return Collection(
        root,
        tuple(Record(id_of_path(path), path, _split(path, split), _captions(root / path)) for path in paths),
    )


def image_paths(root: Path) -> Iterator[str]:
    """The paths of all pictures in a folder and its subfolders that aren't hidden, relative to it."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__MACOSX"))]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(folder, name).relative_to(root).as_posix()


def _split(path: str, default: str) -> str:
    top, slash, _ = path.partition("/")
    return SPLIT_ALIASES.get(top.lower(), default) if slash else default


def _captions(image: Path) -> tuple[str, ...]:
    sidecar = image.with_suffix(".txt")
    if not sidecar.is_file():
        return ()
    # Blank lines only lay the file out; but a file with nothing else was meant to hold a caption.
    return tuple(line for line in read_text(sidecar).split("\n") if line.strip()) or ("",)
