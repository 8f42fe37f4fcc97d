"""modalloy search"""

from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modalloy.cli.verb import Verb
from modalloy.errors import ConfigError, DataError


class Search(Verb):
    """Answers a query from a run's gallery."""

    name = "search"
    summary = "Search a run's gallery by text or by picture."
    example = 'modalloy search runs/demo "a red telephone" -k 5'

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        parser.add_argument("run", type=str, help="run directory")
        parser.add_argument("query", nargs="?", type=str | None, default=None, help="the words to search by")
        parser.add_argument("--image", type=str | None, default=None, help="a picture to search by instead")
        parser.add_argument(
            "--target", type=Literal["image", "text"], default="image", help="what to find: pictures or captions"
        )
        parser.add_argument("-k", type=int, default=5, help="how many")

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.search import GALLERY, GallerySearcher

        if (options.query is None) == (options.image is None):
            raise ConfigError("search by words or by --image: give exactly one of them.")
        gallery = Path(options.run) / GALLERY
        if not gallery.is_dir():
            raise DataError(f"{options.run} holds no gallery; name a folder made by `modalloy run` or `modalloy fuse`.")
        searcher = GallerySearcher.open(gallery)
        if options.image is None:
            hits = searcher.by_text(options.query, options.k, options.target)
        else:
            hits = searcher.by_image(options.image, options.k, options.target)
        return {
            "query": options.image or options.query,
            "hits": [
                {"id": hit.id, "score": hit.score, "path": hit.path and str(hit.path), "caption": hit.caption}
                for hit in hits
            ],
        }

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        table = Table("", "score", title=Text(result["query"]))
        for column in ("caption", "picture"):
            table.add_column(column, overflow="fold")
        for rank, hit in enumerate(result["hits"], start=1):
            # As Text, since a caption may hold what Rich takes for markup.
            found = (Text(hit[key] or "") for key in ("caption", "path"))
            table.add_row(str(rank), f"{hit['score']:.3f}", *found)
        console.print(table)
