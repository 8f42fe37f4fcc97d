"""The folders in which HADA's authors keep a collection: captions as JSON, features as one .npz file an image."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalloy.data import Manifest
from modalloy.data.build import SPLIT_ALIASES, Reject
from modalloy.data.images import SUFFIXES
from modalloy.data.item import Item, caption_problem, check_id
from modalloy.errors import DataError
from modalloy.files import sha256_of
from modalloy.progress import BAR_FROM, track

_CAPTIONS = "_matching_image_preprocessed_cap.json"
_OUTPUT = "_Output"
_AUGMENTED = "_AUG_Output"


@dataclass(frozen=True)
class ListedImage:
    """An image as the JSON files list it."""

    id: str
    """Its id, which names its feature files."""
    split: str
    """Its split, from the JSON file's name."""
    captions: Mapping[int, str]
    """The captions that can be used, by their number in the JSON file."""
    listed: int
    """How many captions the JSON file lists."""


@dataclass(frozen=True)
class EncoderFolder:
    """The features of one encoder."""

    name: str
    """In lower case: "albef" for ALBEF_Output."""
    images: Path | None
    """Folder of <id>.npz, if there is one."""
    texts: Path | None
    """Folder of <id>.npz, if there is one."""
    augmented: Path | None
    """Folder of <id>_<copy>.npz, if there is one."""

    def feature_files(self, id: str) -> Iterator[Path]:
        """Where an item's features should be."""
        yield from (folder / f"{id}.npz" for folder in (self.images, self.texts) if folder is not None)

    def copies(self) -> dict[int, set[str]]:
        """For each augmented copy the ids of the images that have it."""
        found: dict[int, set[str]] = {}
        for file in self.augmented.iterdir() if self.augmented is not None else ():
            if match := re.fullmatch(r"(.+)_(\d+)\.npz", file.name):
                found.setdefault(int(match[2]), set()).add(match[1])
        return dict(sorted(found.items()))


def find_encoders(root: Path, collection: str) -> list[EncoderFolder]:
    """The encoders that have features of a collection, by name.

    Raises:
        DataError: there is none, or two have one name.
    """
    if not root.is_dir():
        problem = "is no folder" if root.exists() else "doesn't exist"
        raise DataError(f"{root} {problem}; name the folder that holds the authors' features.")
    encoders = []
    for output in sorted(root.glob(f"*{_OUTPUT}")):
        name = output.name.removesuffix(_OUTPUT)
        images, texts = _folder(output / collection / "images"), _folder(output / collection / "texts")
        if name and not output.name.endswith(_AUGMENTED) and (images or texts):
            augmented = _folder(root / f"{name}{_AUGMENTED}" / collection / "images")
            encoders.append(EncoderFolder(name.lower(), images, texts, augmented))
    if not encoders:
        raise DataError(
            f"{root} holds no features in the authors' layout: a folder such as "
            f"ALBEF{_OUTPUT}/{collection}/images was expected; check the folder and the collection's name."
        )
    names = [encoder.name for encoder in encoders]
    if len(set(names)) < len(names):
        raise DataError(f"{root}: two encoders' folders differ in case only ({', '.join(names)}); rename one.")
    return encoders


def read_captions(root: Path) -> tuple[list[ListedImage], list[Reject]]:
    """The images and captions of JSON/{train,val,test}_matching_image_preprocessed_cap.json, in the files' order.

    A caption that can't be used is left out and listed; the others keep their numbers.

    Raises:
        DataError: there is no such file, one isn't what it should be, or an id is listed twice.
    """
    files = {path.name.removesuffix(_CAPTIONS): path for path in sorted((root / "JSON").glob(f"*{_CAPTIONS}"))}
    splits = [split for split in SPLIT_ALIASES if split in files]
    if not splits:
        raise DataError(f"{root / 'JSON'} holds none of {{train,val,test}}{_CAPTIONS}, which list the captions.")
    images: list[ListedImage] = []
    rejects: list[Reject] = []
    for split in splits:
        for id, captions in _read_pairs(files[split]):
            try:
                check_id(id)
                images.append(_listed_image(id, SPLIT_ALIASES[split], captions, rejects))
            except DataError as error:
                rejects.append(Reject(ascii(id)[1:-1], str(error)))
    seen: set[str] = set()
    for image in images:
        if image.id in seen:
            raise DataError(f"{root / 'JSON'}: the image {image.id!r} is listed twice; each belongs to one split.")
        seen.add(image.id)
    return images, rejects


def build_collection(
    root: Path,
    images: Path | None,
    listed: list[ListedImage],
    encoders: list[EncoderFolder],
    rejects: list[Reject],
    saved: Path,
) -> Manifest:
    """The collection's manifest: its pictures, or where there are none each item's first feature file.

    An item without any file is added to `rejects`. Checksums are taken from an earlier manifest, `saved`, if it is
    newer than the file: all feature files together may be some 50 GB.

    Raises:
        DataError: a picture is missing, there are two of one name, or no item is left.
    """
    pictures = None if images is None else _pictures(images, {each.id for each in listed})
    base = root if images is None else images
    checksum, items = _checksums(saved), []
    for each in track(listed, "checksums", total=len(listed), shown_from=BAR_FROM):
        if pictures is not None:
            path: Path | None = pictures[each.id]
        else:
            candidates = (file for encoder in encoders for file in encoder.feature_files(each.id))
            path = next((file for file in candidates if file.is_file()), None)
        if path is None:
            rejects.append(Reject(each.id, "no encoder has a feature file of it"))
            continue
        captions = tuple(each.captions.values())
        items.append(Item(each.id, path.relative_to(base).as_posix(), checksum(path), each.split, captions))
    if not items:
        raise DataError(f"none of the {len(listed)} images listed in {root / 'JSON'} has a feature file.")
    return Manifest(base, tuple(items))


def _checksums(saved: Path) -> Callable[[Path], str]:
    known: dict[Path, str] = {}
    written = saved.stat().st_mtime_ns if saved.exists() else 0
    # A manifest that can't be read is written anew.
    with suppress(DataError):
        earlier = Manifest.load(saved)
        known = {earlier.absolute(item).resolve(): item.sha256 for item in earlier}

    def checksum(path: Path) -> str:
        status = path.stat()
        # A file that was copied or unpacked may keep an old date; the time of its last change in the folder doesn't.
        unchanged = max(status.st_mtime_ns, status.st_ctime_ns) < written
        return known[path.resolve()] if unchanged and path.resolve() in known else sha256_of(path)

    return checksum


def _folder(path: Path) -> Path | None:
    return path if path.is_dir() else None


def _read_pairs(path: Path) -> tuple[tuple[str, Any], ...]:
    """The keys and values of a JSON object, in order; of two equal keys Python would keep the last, silently."""
    try:
        pairs = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=tuple)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} can't be read as JSON ({error}); get it again.") from None
    if not isinstance(pairs, tuple):
        raise DataError(f"{path} must hold one JSON object, from image ids to lists of captions.")
    return pairs


def _listed_image(id: str, split: str, captions: Any, rejects: list[Reject]) -> ListedImage:
    if not isinstance(captions, list):
        raise DataError(f"the captions must be a list, got {type(captions).__name__}")
    usable = {}
    for number, caption in enumerate(captions):
        problem = caption_problem(caption) if isinstance(caption, str) else "is no text"
        if problem is None:
            usable[number] = caption
        else:
            rejects.append(Reject(id, f"caption {number} {problem}"))
    return ListedImage(id, split, usable, len(captions))


def _pictures(folder: Path, ids: set[str]) -> dict[str, Path]:
    """The picture of each id, wherever it is below the folder."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.stem not in ids:
            continue
        if path.stem in found:
            raise DataError(f"the pictures {found[path.stem]} and {path} have the same id; remove one.")
        found[path.stem] = path
    missing = sorted(ids - set(found))
    if missing:
        raise DataError(
            f"{folder} lacks the pictures of {len(missing)} of {len(ids)} images, the first is {missing[0]}.jpg; "
            "complete it, or import without pictures."
        )
    return found
