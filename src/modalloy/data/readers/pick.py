"""Picks the reader for a path by what is found there."""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

from modalloy.data.build import Reject, build_manifest
from modalloy.data.item import is_item_line
from modalloy.data.known_files import KnownFiles
from modalloy.data.manifest import Manifest
from modalloy.data.readers.braces import expand_braces, has_braces
from modalloy.data.readers.caption_list import is_caption_list, list_name, read_caption_lists
from modalloy.data.readers.collection import Collection, text_lines
from modalloy.data.readers.flickr_token import read_token
from modalloy.data.readers.folder import image_paths, read_folder
from modalloy.data.readers.karpathy import read_karpathy
from modalloy.data.readers.split_tables import is_split_table, read_split_tables, split_tables
from modalloy.data.readers.table import read_csv, read_jsonl
from modalloy.data.readers.tars import read_tars
from modalloy.errors import DataError

_TABLES: dict[str, Callable[..., Collection]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_csv,
    ".token": read_token,
    ".token.txt": read_token,
}
_INDEX_FILES = ("manifest.jsonl", "dataset_*.json", "metadata.jsonl", "metadata.csv")
_OWN_FILES = ("rejects.jsonl", "provenance.jsonl", "source.json", "dataset_info.json", "dataset_dict.json")
_HUGGING_FACE = ("dataset_dict.json", "state.json", "*.parquet", "data/*.parquet")
_COMPRESSED_TARS = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_KNOWN = (
    "a folder of pictures or tars, a manifest or rows (.jsonl, .ndjson), a table (.csv, .tsv, .txt), Karpathy's JSON "
    "or a caption list of BLIP or ALBEF (.json), Flickr's captions (.token), webdataset tars (.tar), or several "
    "lists or tars such as shards/{000..012}.tar; a Hugging Face dataset is imported first "
    "(modalloy import dataset)"
)
_log = logging.getLogger(__name__)


def read_collection(
    path: str | Path,
    images: str | Path | None = None,
    *,
    split: str = "train",
    decode: bool = False,
    known_files: KnownFiles | None = None,
) -> tuple[Manifest, list[Reject]]:
    """Reads a collection of any known form and checks its files.

    A file is read by its suffix: .json as Karpathy's JSON or, where it holds a list, as a caption list of BLIP
    or ALBEF; .jsonl as a saved manifest (taken as it is) or as rows; .csv, .tsv and .txt as a table; .token as
    Flickr's captions; .tar as a webdataset tar. Several lists or tars make one collection when named by braces:
    `coco_karpathy_{train,val,test}.json`, `shards/{000..012}.tar`. In a folder a manifest.jsonl,
    dataset_*.json, metadata.jsonl, metadata.csv, the last two in folders named after splits (train/metadata.jsonl),
    caption lists (*_train.json, *_val.json, *_test.json) and tars are looked for, in this order; without them
    its images are read, with sidecar captions. The log says which was taken where there are others.

    >>> import tempfile
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (4, 4)).save(folder / "cat.png")
    >>> manifest, rejects = read_collection(folder)
    >>> manifest.image_ids, rejects
    (['cat.png'], [])

    Args:
        path: a file, a folder, or a pattern with braces.
        images: the folder that image paths start from, where it isn't the file's own.
        split: the split of images for which the collection names none.
        decode: whether to decode each image fully instead of its header alone; slower, finds truncated files.
        known_files: what is known of the pictures' files; those that are as they were aren't read.

    Raises:
        DataError: the form isn't known, or the collection's structure is at fault.
    """
    root, files = _found(Path(path))
    if Path(path).is_dir():
        _log_choice(root, files)
    if len(files) == 1 and _is_manifest(files[0]):
        return Manifest.load(files[0], images), []
    collection = _read(root, files, images, split)
    manifest, rejects = build_manifest(
        collection.records,
        collection.root,
        expected=collection.expected,
        decode=decode,
        name=path,
        known_files=known_files,
    )
    return manifest, [*collection.rejects, *rejects]


def listed_in(folder: Path) -> tuple[list[Path], set[str]]:
    """The lists by which a folder is read, and the paths of the pictures that they name, by their real folders;
    tars list none.

    Raises:
        DataError: a list can't be read.
    """
    root, files = _found(folder)
    if not files or files[0].suffix.lower() == ".tar":
        return [], set()
    found = Manifest.load(files[0]) if _is_manifest(files[0]) else _read(root, files, None, "train")
    pictures = found.items if isinstance(found, Manifest) else found.records
    real = lru_cache(None)(os.path.realpath)
    paths = (os.path.split(os.path.join(found.root, each.path)) for each in pictures)
    return files, {os.path.join(real(folder), name) for folder, name in paths}


def _found(path: Path) -> tuple[Path, list[Path]]:
    """The folder of a collection, and the files that list its images; no files for a folder of pictures."""
    if has_braces(path):
        root, files = expand_braces(path)
        if (missing := next((file for file in files if not file.is_file()), None)) is not None:
            raise DataError(f"{missing}, which {path} names, isn't there; check the path.")
        return root, files
    if path.is_dir():
        return path, _files_of_folder(path)
    if not path.is_file():
        # A pipe can't be read twice, and could be waited for for ever.
        problem = "is a device or pipe, not a file" if path.exists() else "isn't there"
        raise DataError(f"{path} {problem}; check the path.")
    return path.parent, [path]


def _files_of_folder(folder: Path) -> list[Path]:
    for pattern in _INDEX_FILES:
        # Hugging Face calls its own files dataset_info.json and dataset_dict.json.
        found = sorted(file for file in folder.glob(pattern) if file.stem not in ("dataset_info", "dataset_dict"))
        if len(found) > 1:
            raise _several(folder, [one.name for one in found])
        if found:
            return found
    found = split_tables(folder) or _caption_lists(folder) or _tars(folder)
    if not found and any(next(folder.glob(pattern), None) for pattern in _HUGGING_FACE):
        raise DataError(
            f"{folder} is a Hugging Face dataset; import it first: modalloy import dataset {folder} --out ..."
        )
    return found


def _log_choice(folder: Path, files: Sequence[Path]) -> None:
    """Says what of a folder is read where it holds other lists, which would be passed over in silence."""
    suffixes = {".json", ".tar", *_TABLES} - {".txt"}  # A .txt is a caption, or notes.
    others = [
        file.name
        for file in sorted(folder.iterdir())
        if file not in files and file.name.lower().endswith(tuple(suffixes)) and file.name not in _OWN_FILES
    ]
    if others:
        taken = ", ".join(file.relative_to(folder).as_posix() for file in files[:3]) or "its pictures"
        taken += ", ..." if len(files) > 3 else ""
        _log.info("%s: read by %s; not by %s: name a list to read that one", folder, taken, ", ".join(others))


def _caption_lists(folder: Path) -> list[Path]:
    lists: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        name, split = list_name(file)
        if split is not None and is_caption_list(file):
            lists[name].append(file)
    if len(lists) > 1:
        raise _several(folder, [f"{name}_{{train,val,test}}.json" for name in lists])
    return next(iter(lists.values()), [])


def _tars(folder: Path) -> list[Path]:
    tars = sorted([*folder.glob("*.tar"), *folder.glob("*/*.tar")])
    tars = [tar for tar in tars if tar.is_file() and not tar.name.startswith(".")]
    if tars and (picture := next(image_paths(folder), None)) is not None:
        raise DataError(
            f"{folder} holds both tars ({tars[0].name}, ...) and pictures ({picture}, ...); name the tars "
            f"(for example {folder}{os.sep}{{000..012}}.tar), or keep them elsewhere."
        )
    return tars


def _several(folder: Path, names: Sequence[str]) -> DataError:
    return DataError(f"{folder} holds several collections ({', '.join(names)}); name one.")


def _read(root: Path, files: Sequence[Path], images: str | Path | None, split: str) -> Collection:
    if all(file.suffix.lower() == ".tar" for file in files):
        if images is not None:
            raise DataError(
                f"{root} has no file that lists images, so leave out the image folder {images} (in a run's "
                "configuration: images: null, or --set images=null)."
            )
        return read_tars(files, root, split) if files else read_folder(root, split)
    if files and all(is_split_table(file, root) for file in files):
        return read_split_tables(files, root)
    if all(file.suffix.lower() == ".json" and is_caption_list(file) for file in files):
        return read_caption_lists(files, images, split)
    if len(files) > 1:
        raise DataError(f"only tars, or caption lists in JSON, can be read together, not {files[0]} and {files[1]}.")
    (file,) = files
    name = file.name.lower()
    if name.endswith(_COMPRESSED_TARS):
        raise DataError(f"{file} is compressed, so that it can't be read in place; uncompress it to a plain .tar.")
    if name.endswith(".json"):
        return read_karpathy(file, images)
    # The longest suffix that fits: .token.txt isn't a table.
    suffix = max((known for known in _TABLES if name.endswith(known)), key=len, default=None)
    if suffix is None:
        raise DataError(f"{file} isn't a known collection; it should be {_KNOWN}.")
    return _TABLES[suffix](file, images, split)


def _is_manifest(path: Path) -> bool:
    """Whether one of the first two lines is an item's (the first may name the root)."""
    return path.suffix.lower() == ".jsonl" and any(is_item_line(line) for line in islice(text_lines(path), 2))
