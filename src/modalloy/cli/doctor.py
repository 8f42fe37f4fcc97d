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
            colour = "red" if problem["severity"] == "error" else "yellow"
            text = ": ".join(filter(None, (problem["item"], problem["message"])))
            console.print(Text.assemble((problem["severity"], colour), " ", text), soft_wrap=True)
        errors = _errors(result)
        warnings = len(result["problems"]) - errors
        console.print(f"{_counted(errors, 'error')}, {_counted(warnings, 'warning')}")

    def exit_code(self, result: dict[str, Any]) -> int:
        """1 where there are errors; warnings alone are no failure."""
        return int(_errors(result) > 0)


def _errors(result: dict[str, Any]) -> int:
    return sum(problem["severity"] == "error" for problem in result["problems"])


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"
