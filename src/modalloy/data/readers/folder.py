"""Reads a folder of images, with captions in sidecar text files or with none."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from modalloy.data.build import SPLIT_ALIASES, Record, Reject, as_utf8
from modalloy.data.images import SUFFIXES
from modalloy.data.item import check_id, check_path
from modalloy.data.readers.collection import MAX_TEXT_BYTES, Collection, captions_of_lines, id_of_path, read_text
from modalloy.data.readers.passed_over import passed_over, passed_over_line
from modalloy.errors import DataError


def read_folder(folder: str | Path, split: str = "train") -> Collection:
    """Reads all images in a folder and its subfolders, in the order of their paths.

    The captions of `cat.jpg` are the lines of `cat.txt` beside it; without that file the image has none, and
    can still be indexed; with one of more than `MAX_TEXT_BYTES` it is left out. Images under a top folder named
    after a split (`train`, `val`, `tune`, `test`, `validation`, ...) belong to that split, all others to `split`.
    An item's id is its path, ":" for "/"; a file whose name can't be one's is left out. Hidden files are passed over,
    and links to folders aren't followed.

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
        others = passed_over(visible_files(root))
        but = f" but {passed_over_line(others)}" if others else ""
        raise DataError(f"{root} holds no images{but}; a picture's name ends in one of {', '.join(SUFFIXES)}.")
    records: list[Record] = []
    rejects: list[Reject] = []
    taken: dict[str, str] = {}
    for path in paths:
        id, sidecar = id_of_path(path), (root / path).with_suffix(".txt")
        if (problem := _too_large(sidecar)) is not None:
            rejects.append(Reject(as_utf8(id), as_utf8(problem)))
        elif (problem := _name_problem(path, id, taken)) is not None:
            rejects.append(Reject(repr(id)[1:-1], f"{problem} Rename the file."))
        else:
            taken[id] = path
            records.append(Record(id, path, _split(path, split), _captions(sidecar)))
    if not records:
        raise DataError(f"{root}: none of {len(paths)} images can be used; the first: {rejects[0].reason}")
    return Collection(root, tuple(records), rejects=tuple(rejects))


def image_paths(root: Path) -> Iterator[str]:
    """The paths of all pictures in a folder and its subfolders that aren't hidden, relative to it."""
    return (path for path in visible_files(root) if path.lower().endswith(SUFFIXES))


def visible_files(root: Path) -> Iterator[str]:
    """The paths of all files in a folder and its subfolders that aren't hidden, relative to it."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__MACOSX"))]
        # Once a folder, as there may be very many files.
        inside = Path(folder).relative_to(root)
        before = "" if inside == Path() else f"{inside.as_posix()}/"
        yield from (before + name for name in names if not name.startswith("."))


def _split(path: str, default: str) -> str:
    top, slash, _ = path.partition("/")
    return SPLIT_ALIASES.get(top.lower(), default) if slash else default


def _name_problem(path: str, id: str, taken: Mapping[str, str]) -> str | None:
    """What keeps one file, which may be called anything, from being an item; it needn't stop all others."""
    if id in taken:
        return f"{path!r} would have the id of {taken[id]!r}."
    try:
        # A name that isn't UTF-8 is told of with the file's whole path.
        if as_utf8(path) == path:
            check_id(id)
            check_path(path)
    except DataError as error:
        return str(error)
    return None


def _too_large(sidecar: Path) -> str | None:
    size = sidecar.stat().st_size if sidecar.is_file() else 0
    if size <= MAX_TEXT_BYTES:
        return None
    return f"{sidecar} has {size:,} bytes; at most {MAX_TEXT_BYTES:,} are allowed for captions: make it smaller."


def _captions(sidecar: Path) -> tuple[str, ...]:
    return captions_of_lines(read_text(sidecar)) if sidecar.is_file() else ()
