"""Turns what a reader found into a checked manifest, and says what had to be left out."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modalloy.data.images import check_image, open_image, sha256_of_image
from modalloy.data.item import BLANK, SPLITS, Item, caption_problem, check_id, check_path
from modalloy.data.known_files import KnownFiles
from modalloy.data.manifest import Manifest
from modalloy.data.metadata import NO_METADATA, MetaValue, of_one_kind
from modalloy.data.tar_members import split_tar_path
from modalloy.errors import DataError, ImageError
from modalloy.files import atomic_path
from modalloy.progress import BAR_FROM, track

SPLIT_ALIASES = {
    **{name: name for name in SPLITS},
    "restval": "train",
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}
"""How collections name their splits; COCO's `restval` (Karpathy) counts as train."""

REJECTS_NAME = "rejects.jsonl"


@dataclass(frozen=True, slots=True)
class Record:
    """What a collection says about one image, not yet checked.

    Bytes that aren't UTF-8 stand in the texts as lone surrogates (Python's "surrogateescape").
    """

    id: str
    """The id that the item shall have."""
    path: str
    """The image file, relative to the collection's image folder."""
    split: str
    """A split's name or alias, in any case."""
    captions: tuple[str, ...]
    """As found; empty where the collection has none for this image."""
    family: str | None = None
    """Near-identical images share a family."""
    metadata: Mapping[str, MetaValue] = field(default_factory=lambda: NO_METADATA, repr=False)
    """What else is known of it."""


@dataclass(frozen=True, slots=True)
class Reject:
    """An image or a caption that was left out of a manifest."""

    id: str
    """The image's id."""
    reason: str
    """What was wrong, with the caption's number (from 1, as found) where one caption was left out."""


def build_manifest(
    records: Iterable[Record],
    root: str | Path,
    *,
    expected: Mapping[str, int] | None = None,
    decode: bool = False,
    name: str | Path | None = None,
    known_files: KnownFiles | None = None,
) -> tuple[Manifest, list[Reject]]:
    """Checks the records against the files and builds the manifest, with a progress bar if there are many.

    A mistake in the collection's structure is an error. An image that is missing, unreadable or without a
    caption left, and a caption that is blank or not UTF-8, are left out alone and listed among the rejects. An image
    all of whose captions are blank is taken as one that has none.

    >>> import tempfile
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (4, 4)).save(folder / "cat.png")
    >>> manifest, rejects = build_manifest([Record("cat", "cat.png", "train", ("A cat.", " "))], folder)
    >>> manifest.captions
    ['A cat.']
    >>> rejects[0]
    Reject(id='cat', reason='caption 2 of 2 is blank')

    Args:
        records: what the collection's reader found.
        root: the folder that the records' paths start from.
        expected: the number of images that a published split has, by split.
        decode: whether to decode each image fully instead of its header alone; slower, finds truncated files.
        name: what the collection is called in messages; default: `root`.
        known_files: what is known of them; those that are as they were aren't read.

    Raises:
        DataError: two records share an id, a split is unknown, an id or a path can't be used, every image was
            rejected, or a split doesn't have the expected number of images.
    """
    records, root = list(records), Path(root)
    name = root if name is None else name
    rejects: list[Reject] = []
    items = tuple(_items(records, _check_structure(records), root, decode, known_files, rejects))
    if not items:
        if not rejects:
            raise DataError(f"{name}: the collection lists no images; check the path.")
        elsewhere = (
            " If the pictures are elsewhere, name their folder (--images)." if _none_exists(records, root) else ""
        )
        raise DataError(f"{name}: none of {len(records)} images can be used; the first: {rejects[0].reason}{elsewhere}")
    manifest = Manifest(root, items)
    _check_expected(manifest, expected or {}, rejects)
    return manifest, rejects


def write_rejects(manifest_path: str | Path, rejects: Sequence[Reject]) -> Path:
    """Writes rejects.jsonl beside a saved manifest and returns its path; empty if nothing was rejected.

    >>> import tempfile
    >>> write_rejects(Path(tempfile.mkdtemp()) / "manifest.jsonl", [Reject("cat", "is blank")]).read_text()
    '{"id": "cat", "reason": "is blank"}\\n'
    """
    path = Path(manifest_path).with_name(REJECTS_NAME)
    lines = [json.dumps({"id": one.id, "reason": one.reason}, ensure_ascii=False) + "\n" for one in rejects]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    return path


def _check_structure(records: Sequence[Record]) -> list[str]:
    """Each record's split among `SPLITS`; raises for what would put the whole collection in doubt."""
    seen: dict[str, Record] = {}
    splits = []
    for record in records:
        if (other := seen.setdefault(record.id, record)) is not record:
            paths = f"{other.path!r} and {record.path!r}"
            raise DataError(f"two images have the id {record.id!r} ({paths}); ids must be unique.")
        split = SPLIT_ALIASES.get(record.split.strip().lower())
        if split is None:
            known = f"use one of {', '.join(SPLIT_ALIASES)}"
            raise DataError(f"image {record.id!r}: the split {record.split!r} is unknown; {known}.")
        splits.append(split)
        if as_utf8(record.path) == record.path:
            check_id(record.id)
            check_path(record.path)
    return splits


def _items(
    records: Sequence[Record],
    splits: Sequence[str],
    root: Path,
    decode: bool,
    known_files: KnownFiles | None,
    rejects: list[Reject],
) -> Iterator[Item]:
    """The items that can be used; adds the others to `rejects`."""
    metadata = of_one_kind(record.metadata for record in records)
    tracked = track(records, "checking images", total=len(records), shown_from=BAR_FROM)
    for record, split, known in zip(tracked, splits, metadata, strict=True):
        id = as_utf8(record.id)
        captions, problems = _usable_captions(record.captions)
        left_out = [Reject(id, f"caption {number} of {len(record.captions)} {what}") for number, what in problems]
        try:
            sha256 = _check_and_hash(root, record.path, decode, known_files)
        except ImageError as error:
            # Before its captions, as the first reject is what an error names.
            rejects += [Reject(id, as_utf8(str(error))), *left_out]
            continue
        rejects += left_out
        if not captions and any(what != BLANK for _, what in problems):
            rejects.append(Reject(id, "the image has no usable caption left"))
            continue
        yield Item(record.id, record.path, sha256, split, captions, record.family, known)


def _none_exists(records: Sequence[Record], root: Path) -> bool:
    paths = (root / record.path for record in records)
    return not any(os.path.lexists(path) or split_tar_path(path) for path in paths)


def _check_and_hash(root: Path, relative: str, decode: bool, known_files: KnownFiles | None) -> str:
    path = root / relative
    if as_utf8(relative) != relative:
        raise ImageError(f"{path}: the file's name isn't UTF-8; rename it.")
    if decode:
        open_image(path)
    if known_files is not None:
        return known_files.look(root, relative).sha256
    if not decode:
        check_image(path)
    try:
        return sha256_of_image(path)
    except OSError as error:
        raise ImageError(f"{path} can't be read ({error.strerror}).") from None


def _usable_captions(captions: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[int, str]]]:
    """Those that aren't blank and are UTF-8, without the white space around them; the others' numbers and problems."""
    usable, problems = list[str](), list[tuple[int, str]]()
    for number, caption in enumerate(captions, start=1):
        if (problem := caption_problem(caption)) is None:
            usable.append(caption.strip())
        else:
            problems.append((number, problem))
    return tuple(usable), problems


def _check_expected(manifest: Manifest, expected: Mapping[str, int], rejects: Sequence[Reject]) -> None:
    counts = manifest.counts()
    for split, images in expected.items():
        got = counts.get(split, {"images": 0})["images"]
        if got != images:
            first = f" (the first reject, {rejects[0].id}: {rejects[0].reason})" if rejects else ""
            raise DataError(
                f"{manifest.root}: the published {split} part has {images:,} images, but {got:,} can be used"
                f"{first}; figures on it wouldn't compare with others': complete the images."
            )


def as_utf8(text: str) -> str:
    """The text with what isn't UTF-8 spelled out, so that it can be written."""
    return text.encode("utf-8", "backslashreplace").decode()
