"""The files of an index's pictures, which may have changed or gone since they were indexed.

The paths in an index are checked as if they came from a request, since whoever can write an index mustn't thereby read
any file: nothing outside a source's folder is ever opened.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from modalloy.data.images import decode_image
from modalloy.data.inside import Inside, Opened
from modalloy.errors import ImageError
from modalloy.index.base import Source

FILE = ("source", "path", "sha256")
"""The columns by which a picture's file is found."""


class PictureFiles:
    """Finds and opens them.

    Args:
        sources: of the index, which say where its folders are.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._roots = {source.name: source.root for source in sources}

    def path(self, row: Mapping[str, Any]) -> str | None:
        """The absolute path of a row's picture; None where its folder isn't known, or it isn't inside that."""
        return next(self.paths([row]))

    def paths(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[str | None]:
        """`path` for each of some rows, which looks up once where a folder really is."""
        folders: dict[str, Inside] = {}
        for row in rows:
            source, path = row["source"] or "", row["path"]
            root = self._roots.get(source)
            if not root or path is None:
                yield None
                continue
            # Another source's folder may be out of reach.
            inside = folders.get(source) or folders.setdefault(source, Inside(root))
            yield str(Path(root) / path) if inside.holds(path) else None

    def open(self, row: Mapping[str, Any]) -> Opened:
        """The file of a row's picture, whatever is in it by now.

        Raises:
            ImageError: its folder isn't known, or it isn't a file inside that.
        """
        root = self._roots.get(row["source"] or "")
        if not root or row["path"] is None:
            raise ImageError("the index doesn't say where this picture's file is.")
        return Inside(root).open(row["path"])

    def image(self, row: Mapping[str, Any]) -> Image.Image:
        """A row's picture, decoded, if its file is the one that was indexed.

        Args:
            row: with `FILE`.

        Raises:
            ImageError: it isn't, or it can't be decoded.
        """
        with (opened := self.open(row)).file as file:
            if row["sha256"] is not None and sha256_of_file(opened) != row["sha256"]:
                raise ImageError(f"{opened.state[0]} has changed since it was indexed; update the index.")
            return decode_image(file, opened.state[0])


def sha256_of_file(opened: Opened) -> str:
    """The SHA-256 of a file's bytes, which is at its start again afterwards."""
    digest = hashlib.file_digest(opened.file, "sha256").hexdigest()  # type: ignore[arg-type]
    opened.file.seek(0)
    return digest
