"""modalloy extract"""

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from modalloy.cli.verb import Verb, add_collection, add_extraction, open_for

if TYPE_CHECKING:
    from modalloy.encoders import Encoder
    from modalloy.workflow.features import Collection

WONT_FIT = 1


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
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="only tell the disk and the time it will take, by a sample; exit code 1 if the disk is too small",
        )

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.encoders import load_encoder
        from modalloy.workflow.dry_run import stores_of

        # All of them first, so that a misspelt one is found before the first one's work.
        encoders = [load_encoder(spec) for spec in options.encoders]
        collection = open_for(options)
        if options.dry_run:
            return _plan(collection, encoders)
        stores = []
        for encoder in encoders:
            for modality, copy in stores_of(collection, encoder):
                store = collection.store(encoder, modality, copy)
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
        if "disk" in result:
            _show_plan(result, console)
            return
        table = Table("encoder", "modality", "rows", "rejected")
        table.add_column("folder", overflow="fold")
        for store in result["stores"]:
            table.add_row(*(Text(str(value)) for value in store.values()))
        console.print(table)

    def exit_code(self, result: dict[str, Any]) -> int:
        """1 where a dry run finds that the disk is too small."""
        return 0 if result.get("disk", {}).get("fits", True) else WONT_FIT


def _plan(collection: "Collection", encoders: "list[Encoder]") -> dict[str, Any]:
    from modalloy.features.estimate import free_bytes
    from modalloy.workflow.dry_run import plan_stores

    planned = plan_stores(collection, encoders)
    needed, free = sum(store.estimate.bytes for store in planned), free_bytes(collection.features)
    return {
        "stores": [
            {"encoder": store.encoder, "modality": store.modality}
            | asdict(store.estimate)
            | {"folder": str(store.folder)}
            for store in planned
        ],
        "disk": {"needed": needed, "free": free, "fits": needed < free},
    }


def _show_plan(result: dict[str, Any], console: Console) -> None:
    table = Table("encoder", "modality", "rows", "stored", "disk to take", "about")
    table.add_column("folder", overflow="fold")
    for store in result["stores"]:
        cells = (
            store["encoder"],
            store["modality"],
            f"{store['rows']:,}",
            f"{store['stored']:,}",
            decimal(store["bytes"]),
            str(timedelta(seconds=round(store["seconds"]))),
            store["folder"],
        )
        table.add_row(*map(Text, cells))
    console.print(table)
    disk = result["disk"]
    verdict = "" if disk["fits"] else ": it won't fit; make room, or choose another --features folder"
    console.print(Text(f"{decimal(disk['needed'])} to take, {decimal(disk['free'])} free{verdict}."))
