"""modalloy extract"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modalloy.cli.verb import Verb, add_collection, add_extraction, open_for


class Extract(Verb):
    """Stores an encoder's features of a collection."""

    name = "extract"
    summary = "Store an encoder's features of a collection; goes on where it was interrupted."
    example = "modalloy extract efficientnet-lite0 minilm --collection demo"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        parser.add_argument("encoders", nargs="+", type=str, help="encoder specs")
        add_collection(parser)
        add_extraction(parser)

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.encoders import load_encoder

        # All of them first, so that a misspelt one is found before the first one's work.
        encoders = [load_encoder(spec) for spec in options.encoders]
        collection = open_for(options)
        stores = []
        for encoder in encoders:
            for modality in encoder.modalities:
                store = collection.store(encoder, modality)
                stores.append(
                    {
                        "encoder": encoder.spec,
                        "modality": modality,
                        "rows": len(store),
                        "rejected": len(store.rejects()),
                        "folder": str(store.folder),
                    }
                )
        return {"stores": stores}

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        table = Table("encoder", "modality", "rows", "rejected")
        table.add_column("folder", overflow="fold")
        for store in result["stores"]:
            table.add_row(*(Text(str(value)) for value in store.values()))
        console.print(table)
