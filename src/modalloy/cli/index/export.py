"""modalloy index export"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.text import Text

from modalloy.cli.verb import Verb
from modalloy.counted import counted


class Export(Verb):
    """Writes an index in other tools' formats."""

    name = "export"
    summary = "Write an index's vectors and metadata as other tools read them."
    example = "modalloy index export npy-parquet exported"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        kinds = "npy-parquet: clip-retrieval's layout; faiss: flat FAISS indexes with the same metadata"
        parser.add_argument("kind", choices=["npy-parquet", "faiss"], help=kinds)
        parser.add_argument("folder", type=str, help="a new folder")
        parser.add_argument("--index", type=str, default="index", help="the index: a folder or a URI")
        parser.add_argument("--half", action="store_true", help="npy-parquet: float16, as clip-retrieval writes them")

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.errors import ConfigError
        from modalloy.index import open_index
        from modalloy.index.exchange.faiss_index import export_faiss
        from modalloy.index.exchange.npy_parquet import export_npy_parquet

        snapshot = open_index(options.index).snapshot()
        if options.kind == "npy-parquet":
            return export_npy_parquet(snapshot, options.folder, half=options.half)
        if options.half:
            raise ConfigError("--half goes with npy-parquet alone; a flat FAISS index has float32.")
        return export_faiss(snapshot, options.folder)

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        rows, parts = counted(result["rows"], "row"), counted(result["parts"], "part")
        held = f"{rows}, each a picture with a caption where it has one, in {parts}"
        line = f"{result['folder']}: {held}"
        console.print(Text(line), soft_wrap=True)
