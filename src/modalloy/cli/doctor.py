"""modalloy doctor"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.text import Text

from modalloy.cli.verb import Verb


class Doctor(Verb):
    """Says what is wrong with a collection, stored features or a run."""

    name = "doctor"
    summary = "Check a collection, a feature folder or a run directory, and name what is wrong."
    example = "modalloy doctor runs/demo"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        parser.add_argument("path", type=str, help='a collection, "demo", a feature folder or a run directory')
        parser.add_argument("--images", type=str | None, default=None, help="folder of a Karpathy JSON's pictures")

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.workflow.doctor import examine

        return examine(options.path, options.images)

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        for line in result["checked"]:
            console.print(Text(line), soft_wrap=True)
        for problem in result["problems"]:
            console.print(Text.assemble(("problem", "red"), " ", problem), soft_wrap=True)
        console.print(f"{len(result['problems'])} problems")

    def exit_code(self, result: dict[str, Any]) -> int:
        """1 where there are problems."""
        return int(bool(result["problems"]))
