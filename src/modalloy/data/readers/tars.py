"""Reads webdataset tars where they are, without unpacking them.

Source: T. Breuel, "Efficient PyTorch I/O library for large datasets, many files, many GPUs" (2020), and
https://github.com/webdataset/webdataset.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modalloy.data.build import Record, Reject, as_utf8
from modalloy.data.images import SUFFIXES
from modalloy.data.json_kind import json_kind
from modalloy.data.readers.collection import (
    MAX_TEXT_BYTES,
    Collection,
    captions_of,
    captions_of_lines,
    id_of_path,
    parse_json,
    split_of_name,
)
from modalloy.data.tar_members import TarIndex, read_member, tar_index
from modalloy.errors import DataError
from modalloy.progress import track

_CAPTION_KEYS = ("captions", "caption", "texts", "text")
_BAR_FROM = 20


def read_tars(tars: Iterable[str | Path], root: str | Path, split: str = "train") -> Collection:
    """Reads samples: the members of a tar whose names are the same up to the first dot of the base name.

    Of a sample's members the picture (by its suffix), `.txt` (a caption a line, as in a folder) and `.json`
    ("captions", "caption", "texts" or "text") are used, others such as `.cls` passed over; a sample without
    captions can still be indexed. The split is what the tar's or its folders' names say (`train-000.tar`,
    `val/000.tar`), else `split`. An item's path is TAR/MEMBER, and its id the same with ":" for "/".

    >>> import io, tarfile, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with tarfile.open(folder / "val-000.tar", "w") as tar:
    ...     for name, content in {"7.jpg": b"...", "7.txt": b"A cat."}.items():
    ...         header = tarfile.TarInfo(name)
    ...         header.size = len(content)
    ...         tar.addfile(header, io.BytesIO(content))
    >>> read_tars([folder / "val-000.tar"], folder).records
    (Record(id='val-000.tar:7.jpg', path='val-000.tar/7.jpg', split='val', captions=('A cat.',), family=None),)

    Args:
        tars: the tars, which are inside `root` and not compressed.
        root: the folder that item paths start from.
        split: the split of tars whose names don't tell.

    Raises:
        DataError: a tar is compressed or can't be read, or there is no sample that can be used.
    """
    paths, root = [Path(tar) for tar in tars], Path(root)
    records: list[Record] = []
    rejects: list[Reject] = []
    for tar in track(paths, "reading tars", total=len(paths), shown_from=_BAR_FROM):
        inside, index = tar.relative_to(root).as_posix(), tar_index(tar)
        rejects += (_reject(f"{inside}/{name}".rstrip("/"), reason) for name, reason in index.faults)
        tar_split = next(filter(None, map(split_of_name, reversed(inside.split("/")))), split)
        for key, sample in _samples(index).items():
            rejects += (_reject(f"{inside}/{name}", "is a second picture of its sample") for name in sample.more)
            if sample.picture is None:
                rejects.append(_reject(f"{inside}/{key}", "the sample has no picture"))
                continue
            path = f"{inside}/{sample.picture}"
            try:
                records.append(Record(id_of_path(path), path, tar_split, tuple(_captions(tar, sample.texts))))
            except DataError as error:
                rejects.append(_reject(id_of_path(path), str(error)))
    if not records:
        first = f"; the first of what was left out: {rejects[0].id}: {rejects[0].reason}" if rejects else ""
        which = f"{paths[0]} holds" if len(paths) == 1 else f"{root}: {len(paths)} tars hold"
        raise DataError(f"{which} no sample with a picture that can be used{first}.")
    return Collection(root, tuple(records), rejects=tuple(rejects))


def _reject(id: str, reason: str) -> Reject:
    return Reject(as_utf8(id), as_utf8(reason))


@dataclass(slots=True)
class _Sample:
    picture: str | None = None
    more: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    """The names of the `.txt` and the `.json`, by suffix."""


def _samples(index: TarIndex) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    for name in index.members:
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        suffix = f".{suffix.lower()}"
        # A name that starts with a dot is hidden: macOS leaves such copies.
        # "7.mask.png" belongs to the sample 7 too, which is named if it has no picture of its own.
        if not stem or not suffix.endswith((".txt", ".json", *SUFFIXES)):
            continue
        sample = samples.setdefault(f"{folder}{slash}{stem}", _Sample())
        if suffix not in (".txt", ".json", *SUFFIXES):
            continue
        if suffix not in SUFFIXES:
            sample.texts[suffix] = name
        elif sample.picture is None:
            sample.picture = name
        else:
            sample.more.append(name)
    return samples


def _captions(tar: Path, texts: Mapping[str, str]) -> Iterator[str]:
    """A sample's captions; one that both files hold, as img2dataset writes it, counts once."""
    seen = set()
    for suffix in (".txt", ".json"):
        if suffix in texts:
            name = texts[suffix]
            text = read_member(tar, name, MAX_TEXT_BYTES).decode("utf-8-sig", "surrogateescape")
            for caption in captions_of_lines(text) if suffix == ".txt" else _json_captions(text, f"{tar}/{name}"):
                if caption.strip() not in seen:
                    seen.add(caption.strip())
                    yield caption


def _json_captions(text: str, where: str) -> tuple[str, ...]:
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise DataError(f"{where}: it must hold an object, got {json_kind(value)}.")
    found: Any = next((value[key] for key in _CAPTION_KEYS if value.get(key) is not None), [])
    return captions_of(found, where)
