"""Opening a collection by name or path."""

import logging
from collections.abc import Sequence
from pathlib import Path

from modalloy.counted import counted
from modalloy.data import Manifest, demo_manifest, read_collection
from modalloy.data.build import Reject
from modalloy.data.known_files import KnownFiles
from modalloy.data.readers import Unread, unread_in
from modalloy.errors import DataError

DEMO = "demo"
_SHOWN = 10
_log = logging.getLogger(__name__)


def open_collection(path: str | Path, images: str | Path | None = None) -> Manifest:
    """What `open_with_rejects` gives, without the rejects, which are warned of."""
    manifest, rejects = open_with_rejects(path, images)
    warn_of(rejects)
    return manifest


def open_with_rejects(
    path: str | Path, images: str | Path | None = None, known_files: KnownFiles | None = None
) -> tuple[Manifest, list[Reject]]:
    """Reads a collection, gives what it had to leave out, too, for the caller to tell of, and logs its counts.

    Args:
        path: "demo" for the set that comes with modalloy, or what `read_collection` takes: a file, a folder, or
            a pattern such as "shards/{000..012}.tar".
        images: folder of the pictures, where the collection is a file that names them only.
        known_files: what is known of the pictures' files; those that are as they were aren't read.

    Raises:
        DataError: there is no collection or no such folder of pictures, or it breaks the rules of a manifest.
    """
    if images is not None and str(path) == DEMO:
        raise DataError(f"the demo has pictures of its own, so leave out the image folder {images} (images=null).")
    if images is not None and not Path(images).is_dir():
        raise DataError(f"the image folder {images} isn't there; check the path.")
    rejects: list[Reject] = []
    if str(path) == DEMO:
        manifest = demo_manifest()
    else:
        manifest, rejects = read_collection(path, images, known_files=known_files)
    _log.info("%s: %s", path, counts_line(manifest))
    return manifest, rejects


def unread_beside(path: str | Path, images: str | Path | None = None) -> Unread:
    """What `unread_in` finds in a collection's folder; of the demo, nothing."""
    return Unread(DEMO) if str(path) == DEMO else unread_in(path, images)


def warn_of(rejects: Sequence[Reject]) -> None:
    """Logs what a collection had to leave out; many are counted."""
    for reject in rejects[:_SHOWN]:
        _log.warning("left out: %s: %s", reject.id, reject.reason)
    if len(rejects) > _SHOWN:
        _log.warning("left out: %d more; `modalloy doctor` lists all", len(rejects) - _SHOWN)


def counts_line(manifest: Manifest) -> str:
    """The images and captions of each split, in a line.

    >>> counts_line(demo_manifest()).split("; ")[0]
    'train 755 images, 1,539 captions'
    """
    return "; ".join(
        f"{split} {counted(count['images'], 'image')}, {counted(count['captions'], 'caption')}"
        for split, count in manifest.counts().items()
    )
