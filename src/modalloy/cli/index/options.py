"""What the verbs have in common that fill an index."""

from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modalloy.cli.parser import USER_MISTAKE

if TYPE_CHECKING:
    from modalloy.workflow.indexing import Keeper

_SHOWN = 10
_COUNTS = ("pictures", "new", "changed", "moved", "recaptioned", "touched", "removed")


def add_source(parser: ArgumentParser) -> None:
    """The arguments that name a collection."""
    parser.add_argument(
        "source",
        type=str,
        help="a folder of pictures, with captions in text files beside them or without; or any other collection: "
        'a manifest, a table, tars, ..., or "demo" (docs/collections.md)',
    )
    parser.add_argument("--images", type=str | None, default=None, help="folder of a list's pictures, if elsewhere")


def add_index(parser: ArgumentParser) -> None:
    """The argument that names an index."""
    parser.add_argument("--index", type=str, default="index", help="the index: a folder or a URI")


def add_updating(parser: ArgumentParser, watch: bool = True) -> None:
    """The arguments on how sources are looked through."""
    add_index(parser)
    if watch:
        parser.add_argument(
            "--watch",
            action="store_true",
            help="go on updating whenever something changes, until Ctrl-C; ends with the totals",
        )
    parser.add_argument(
        "--rehash",
        action="store_true",
        help="read every byte of every picture, instead of those alone whose size or time has changed, and embed "
        "captions that have no vector",
    )
    parser.add_argument(
        "--allow-removals",
        action="store_true",
        help="remove pictures even where more than half of a source's are gone, as when a disk isn't mounted",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="pictures or captions that are embedded at once")
    parser.add_argument(
        "--workers", type=int | None, default=None, help="threads that decode; default: one a core, at most 4"
    )
    parser.add_argument("--device", type=str | None, default=None, help="where the encoder runs, such as cuda:0")


def keeper_of(options: Namespace) -> "Keeper":
    """What fills the index that the arguments of `add_updating` name."""
    from modalloy.index.sync import SyncConfig
    from modalloy.workflow.indexing import Keeper

    config = SyncConfig(
        batch_size=options.batch_size,
        workers=options.workers,
        rehash=options.rehash,
        allow_removals=options.allow_removals,
    )
    return Keeper(options.index, config, options.device)


def show_updated(result: dict[str, Any], console: Console) -> None:
    """Prints what became of an index."""
    from modalloy.data.readers import Unread

    console.print(Text(f"{result['index']}: made by {result['encoder']}"), soft_wrap=True)
    table = Table("source", *_COUNTS)
    for source in result["sources"]:
        table.add_row(Text(source["source"] or source["collection"]), *(f"{source[count]:,}" for count in _COUNTS))
    if result["sources"]:
        console.print(table)
    rejects = [reject for source in result["sources"] for reject in source["rejects"]]
    for reject in rejects[:_SHOWN]:
        console.print(Text(f"left out: {reject['id']}: {reject['reason']}"), soft_wrap=True)
    if len(rejects) > _SHOWN:
        console.print(f"left out: {len(rejects) - _SHOWN:,} more; --json lists all")
    unread = [line for source in result["sources"] for line in Unread(**source["unread"]).lines()]
    for problem in (*unread, *result["problems"]):
        console.print(Text(problem), soft_wrap=True)


def exit_code_of(result: dict[str, Any]) -> int:
    """That of a mistake where a source couldn't be looked through."""
    return USER_MISTAKE if result["problems"] else 0
