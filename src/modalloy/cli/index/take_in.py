"""modalloy index import"""

from dataclasses import asdict
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.text import Text

from modalloy.cli.verb import Verb
from modalloy.counted import counted


class TakeIn(Verb):
    """Makes an index of vectors that other tools wrote."""

    name = "import"
    summary = "Add vectors that were made elsewhere to an index."
    example = "modalloy index import npy-parquet embeddings --encoder clip:openai/clip-vit-base-patch32"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        kinds = "npy-parquet: clip-retrieval's layout; faiss: image.index, text.index and metadata/"
        parser.add_argument("kind", choices=["npy-parquet", "faiss"], help=kinds)
        parser.add_argument("folder", type=str, help="what to import")
        parser.add_argument("--encoder", type=str, required=True, help="the encoder that made the vectors")
        parser.add_argument("--index", type=str, default="index", help="the index: a folder or a URI; made if needed")
        parser.add_argument("--name", type=str | None, default=None, help="of the new source; default: the folder's")
        parser.add_argument("--images", type=str | None, default=None, help="folder of the pictures; default: FOLDER")

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.encoders import load_encoder
        from modalloy.index import writer_lock
        from modalloy.index.exchange.take_in import index_of, take_in

        encoder = load_encoder(options.encoder)
        with writer_lock(options.index):
            index = index_of(options.index, encoder, options.folder)
            result = take_in(index, options.kind, options.folder, name=options.name, images=options.images)
            index.optimize()
        return {"index": index.location, "rows": index.snapshot().count(), **asdict(result)}

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        line = f"{result['index']}: {counted(result['pictures'], 'picture')} and "
        line += f"{counted(result['captions'], 'caption')} imported"
        console.print(Text(line), soft_wrap=True)
        if result["normalised"]:
            console.print(f"{result['normalised']:,} vectors weren't of unit norm, and now are")
        for reason, count in result["left_out"].items():
            console.print(f"{counted(count, 'pair')} left out: {reason}")
        if not result["made_by_encoder"]:
            console.print("Nothing says that this encoder made the vectors. Try a search before you rely on them.")
