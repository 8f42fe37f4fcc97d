"""Imports a Hugging Face dataset, of the hub or of a local folder, as pictures and a manifest."""

import hashlib
import io
import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from modalloy.data.build import SPLIT_ALIASES, Record, Reject, build_manifest, write_rejects
from modalloy.data.images import FORMATS
from modalloy.data.json_kind import json_kind
from modalloy.data.manifest import Manifest
from modalloy.data.quiet_datasets import quiet_datasets
from modalloy.data.readers.collection import numbered_captions
from modalloy.data.tar_members import MAX_PICTURE_BYTES
from modalloy.errors import ConfigError, DataError
from modalloy.files import atomic_path, read_json, remove_partial_files, write_json
from modalloy.progress import BAR_FROM, track

if TYPE_CHECKING:
    from datasets import Dataset

CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "sentence", "sentences", "raw")
"""The names by which a column of captions is known, as are `caption_0`, `caption_1`, ... together."""

_SPLIT_COLUMN = "split"
_SOURCE = "source.json"
_SUFFIX = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
_FILES = (".arrow", ".csv", ".gz", ".json", ".jsonl", ".parquet", ".tar", ".tgz", ".tsv", ".txt", ".zip")
_log = logging.getLogger(__name__)


def import_dataset(
    source: str | Path,
    folder: str | Path,
    *,
    config: str | None = None,
    image: str | None = None,
    caption: str | Sequence[str] | None = None,
    revision: str | None = None,
) -> tuple[Manifest, list[Reject]]:
    """Writes a dataset's pictures as they are to `folder`/images, and `folder`/manifest.jsonl, rejects.jsonl.

    Rows of a split with the same picture make one item. Its captions are a text, a list of texts, or either
    under "raw"; its split is the dataset's or, where there is a column "split", what that says; its id is the
    split's name and the row's number. After an interruption the same call goes on: pictures already there
    aren't written again. Local folders are what `save_to_disk` made or what `load_dataset` understands
    (parquet files, an image folder). No code that comes with a dataset is ever run.

    Args:
        source: a name on the hub (`user/name`) or a local folder.
        folder: where to write; it holds nothing else.
        config: the dataset's configuration, where it has several.
        image: the column of pictures; default: the only one of that type.
        caption: the column, or columns, of captions; default: the first of `CAPTION_COLUMNS` that there is;
            `()` for pictures alone.
        revision: the hub's branch, tag or commit.

    Returns:
        The manifest as saved, and what was left out.

    Raises:
        ConfigError: the extra `datasets` isn't installed, the source is a file or a folder that isn't there, the
            dataset can't be loaded, it doesn't have such columns, or `folder` holds another import.
        DataError: a split is unknown, or no picture can be used.
    """
    parts = _load(source, config, revision)
    names = next(iter(parts.values())).column_names
    image = _image_column(next(iter(parts.values())), image, source)
    captions = _caption_columns(names, caption, source)
    for name, part in parts.items():
        if lacking := [column for column in (image, *captions) if column not in part.column_names]:
            raise ConfigError(
                f"{source}: its part {name!r} has no column {_quoted(lacking)}, unlike its part {next(iter(parts))!r}; "
                f"it has {_listed(part.column_names)}: give all parts the same columns."
            )
    folder = Path(folder)
    _claim(folder, {"source": str(source), "config": config, "revision": revision, "image": image})
    rejects: list[Reject] = []
    items: dict[tuple[str, bytes], _Row] = {}
    total = sum(map(len, parts.values()))
    rows = (row for name, part in parts.items() for row in _rows(name, part, image, captions))
    for row in track(rows, "importing pictures", total=total, shown_from=BAR_FROM):
        try:
            content = _content(row.picture)
            digest = (row.split, hashlib.sha256(content).digest())
            texts = tuple(_texts(row.captions))
            if (first := items.get(digest)) is None:
                row.path = _write(folder, row.id, content)
                first = items[digest] = row
            first.texts += texts
            row.picture = row.captions = None
        except DataError as error:
            rejects.append(Reject(row.id, str(error)))
    if not items:
        first_reject = f"; the first: {rejects[0].reason}" if rejects else ""
        raise DataError(f"{source}: none of {total:,} rows can be used{first_reject}.")
    records = [Record(row.id, row.path, row.split, tuple(row.texts)) for row in items.values()]
    manifest, more = build_manifest(records, folder)
    rejects += more
    write_rejects(folder / "manifest.jsonl", rejects)
    manifest.save(folder / "manifest.jsonl")
    return manifest, rejects


@dataclass(slots=True)
class _Row:
    id: str
    split: str
    picture: Any
    captions: Any
    path: str = ""
    texts: list[str] = field(default_factory=list)


def _load(source: str | Path, config: str | None, revision: str | None) -> "dict[str, Dataset]":
    """The dataset's parts by their names, none of them empty."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"reading a Hugging Face dataset needs the datasets library ({error}): pip install 'modalloy[datasets]'."
        ) from None
    _require_source(str(source))
    if not Path(source).is_dir():
        _log.info("fetching %s from the hub; if it can't be reached, that shows in half a minute", source)
    saved = any((Path(source) / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        with quiet_datasets():
            loaded = (
                datasets.load_from_disk(str(source))
                if saved
                else datasets.load_dataset(str(source), config, revision=revision)
            )
    # It reaches for the network, the disk and a dozen formats, each with errors of its own.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"{source} can't be loaded as a Hugging Face dataset ({reason}); check the name or path, the "
            "configuration and the connection."
        ) from error
    parts = dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    parts = {name: part for name, part in parts.items() if len(part)}
    if not parts:
        raise ConfigError(f"{source} is empty: it has no rows.")
    return parts


def _require_source(source: str) -> None:
    """Refuses what can be neither a local folder nor a name on the hub, which would be asked for it for long."""
    expected = "a dataset is a folder or a name on the hub such as user/name"
    if Path(source).is_dir():
        return
    if Path(source).exists():
        raise ConfigError(f"{source} is a file; {expected}.")
    name = source.replace(os.sep, "/")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.lower().endswith(_FILES):
        raise ConfigError(f"{source} isn't there; {expected}.")


def _image_column(part: "Dataset", wanted: str | None, source: object) -> str:
    from datasets import Image as ImageType

    if wanted is not None and wanted not in part.column_names:
        raise ConfigError(f"{source} has no column {wanted!r}; it has {_listed(part.column_names)}.")
    pictures = [name for name, kind in part.features.items() if isinstance(kind, ImageType)]
    if wanted is not None:
        if wanted in pictures:
            return wanted
        raise ConfigError(f"{source}: the column {wanted!r} doesn't hold pictures; those that do: {_listed(pictures)}.")
    if len(pictures) != 1:
        raise ConfigError(
            f"{source} has {len(pictures)} columns of pictures ({_listed(pictures)}) among its columns "
            f"{_listed(part.column_names)}; name one with `image`."
        )
    return pictures[0]


def _caption_columns(names: Sequence[str], wanted: str | Sequence[str] | None, source: object) -> list[str]:
    if wanted is not None:
        columns = [wanted] if isinstance(wanted, str) else list(wanted)
        unknown = [name for name in columns if name not in names]
        if unknown:
            raise ConfigError(f"{source} has no column {_quoted(unknown)}; it has {_listed(names)}.")
        return columns
    known = next((name for name in CAPTION_COLUMNS if name in names), None)
    columns = [known] if known is not None else numbered_captions(names)
    if not columns:
        raise ConfigError(
            f"{source} has no column of captions that is known by its name; its columns are {_listed(names)}: name "
            "one with `caption`, or give `caption=()` for the pictures alone."
        )
    return columns


def _claim(folder: Path, import_: dict[str, Any]) -> None:
    """Keeps two imports out of one folder."""
    record = folder / _SOURCE
    if record.exists():
        if (other := read_json(record)) != import_:
            raise ConfigError(f"{folder} holds an import of {other}, not of {import_}; choose another folder.")
    elif folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} isn't empty and holds no import; choose another folder.")
    write_json(record, import_)
    remove_partial_files(folder / "images")


def _rows(name: str, part: "Dataset", image: str, captions: Sequence[str]) -> Iterator[_Row]:
    from datasets import Image as ImageType
    from datasets import Value

    own_split = part.features.get(_SPLIT_COLUMN) == Value("string")
    if not own_split and name.lower() not in SPLIT_ALIASES:
        raise DataError(f"the split {name!r} is unknown; it should be one of {_listed(SPLIT_ALIASES)}.")
    columns = [image, *captions, *([_SPLIT_COLUMN] if own_split else [])]
    # Undecoded: the pictures' own bytes are what is kept.
    part = part.select_columns(list(dict.fromkeys(columns))).cast_column(image, ImageType(decode=False))
    for number, row in enumerate(part):
        split = str(row[_SPLIT_COLUMN]) if own_split else name
        yield _Row(f"{name}-{number:07d}", split, row[image], [row[column] for column in captions])


def _content(picture: Mapping[str, Any] | None) -> bytes:
    """A picture's bytes as the dataset keeps them, in a cell or in a file of its own."""
    if picture is None or (picture.get("bytes"), picture.get("path")) == (None, None):
        raise DataError("the row has no picture")
    content = picture.get("bytes")
    if content is None:
        path = Path(picture["path"])
        try:
            status = path.stat()
            # Opening a named pipe or a device could wait for ever.
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path} isn't a file")
            if status.st_size > MAX_PICTURE_BYTES:
                raise DataError(f"{path} has more than {MAX_PICTURE_BYTES:,} bytes")
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} can't be read ({error.strerror})") from None
    if not content:
        raise DataError("the picture is empty")
    return content


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict) and "raw" in value:
        yield from _texts(value["raw"])
    elif value is not None:
        raise DataError(f"its captions must be a text or a list of texts, got {json_kind(value)}")


def _write(folder: Path, id: str, content: bytes) -> str:
    """Writes a picture, unless it is there already, and returns its path in `folder`."""
    relative = f"images/{id}{_suffix(content)}"
    path = folder / relative
    if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    return relative


def _suffix(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            return _SUFFIX[str(picture.format)]
    except UnidentifiedImageError:
        raise DataError(f"the picture isn't in {', '.join(FORMATS)}") from None
    # As in images.py: damaged files make Pillow raise nearly anything.
    except Exception as error:
        raise DataError(f"the picture can't be decoded ({error})") from error


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"
