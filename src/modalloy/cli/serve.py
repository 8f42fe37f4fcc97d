"""modalloy serve"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.text import Text

from modalloy.cli.verb import Verb

_LISTED, _FLAGS = {"allow_origin"}, {"page", "insecure"}


class Serve(Verb):
    """Serves an index over HTTP, with a page for the browser."""

    name = "serve"
    summary = "Search an index in the browser and over HTTP."
    example = "modalloy serve index"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        from modalloy.serve.config import ServeConfig

        parser.add_argument(
            "index", nargs="?", type=str, default="index", help="the index, or a run or an alloy that holds one"
        )
        parser.add_class_arguments(ServeConfig, skip=_LISTED | _FLAGS)
        parser.add_argument(
            "--allow-origin",
            nargs="+",
            type=str,
            default=[],
            help="other sites whose pages may ask from a browser, such as https://example.org; by default none",
        )
        parser.add_argument("--no-page", action="store_true", help="leave out the page, serve HTTP alone")
        parser.add_argument(
            "--insecure",
            action="store_true",
            help="listen beyond this machine without an API key, for instance behind a proxy that asks for one",
        )

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from dataclasses import fields

        from modalloy.serve import ServeConfig, serve

        given = {field.name: options[field.name] for field in fields(ServeConfig) if field.name not in _LISTED | _FLAGS}
        config = ServeConfig(
            **given,
            allow_origin=tuple(options.allow_origin),
            page=not options.no_page,
            insecure=options.insecure,
        )
        return {"index": options.index, "address": serve(options.index, config)}

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        console.print(
            Text(f"stopped, as it was told to; {result['index']} was served at {result['address']}"), soft_wrap=True
        )
