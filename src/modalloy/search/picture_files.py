"""The files of an index's pictures, which may have changed or gone since they were indexed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from modalloy.data import open_image
from modalloy.data.images import sha256_of_image
from modalloy.errors import ImageError
from modalloy.index import Source
from modalloy.search.rerank import Picture

FILE = ("source", "path", "sha256")
"""The columns by which a picture's file is found."""


class PictureFiles:
    """Finds and opens them.

    Args:
        sources: of the index, which say where its folders are.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._roots = {source.name: Path(source.root) for source in sources}

    def path(self, row: Mapping[str, Any]) -> str | None:
        """The absolute path of a row's picture; None where its folder isn't known."""
        root = self._roots.get(row["source"] or "")
        return None if root is None or row["path"] is None else str(root / row["path"])

    def picture(self, row: Mapping[str, Any]) -> Picture:
        """A row's picture, which opens only if its file is the one that was indexed."""
        path, sha256 = self.path(row), row["sha256"]

        def opened() -> Image.Image:
            if path is None:
                raise ImageError("the index doesn't say where this picture's file is.")
            try:
                same = sha256 is None or sha256_of_image(path) == sha256
            except OSError as error:
                raise ImageError(f"{path} can't be read ({error.strerror}).") from None
            if not same:
                raise ImageError(f"{path} has changed since it was indexed; update the index.")
            return open_image(path)

        return Picture(opened, sha256)
