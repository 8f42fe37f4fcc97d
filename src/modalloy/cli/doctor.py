"""modalloy doctor"""

import re
from collections import defaultdict
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.text import Text

from modalloy.cli.verb import Verb

_SHOWN = 10
# What differs between two messages of a kind: quoted texts, what stands in brackets, paths and numbers.
_PARTICULARS = re.compile(r"(?<!\w)'[^']*'|\"[^\"]*\"|\([^)]*\)|\S*[\\/.]\S+|\S*\d\S*")
_WORDS_OF_A_KIND = 4


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
        kinds = defaultdict(list)
        for problem in result["problems"]:
            kinds[_kind(problem)].append(problem)
        for (severity, _), problems in kinds.items():
            texts = [": ".join(filter(None, (problem["item"], problem["message"]))) for problem in problems[:_SHOWN]]
            if len(problems) > _SHOWN:
                texts.append(f"... and {len(problems) - _SHOWN:,} more of this kind (--json lists all)")
            for text in texts:
                colour = "red" if severity == "error" else "yellow"
                console.print(Text.assemble((severity, colour), " ", text), soft_wrap=True)
        errors = _errors(result)
        warnings = len(result["problems"]) - errors
        console.print(f"{_counted(errors, 'error')}, {_counted(warnings, 'warning')}")

    def exit_code(self, result: dict[str, Any]) -> int:
        """1 where there are errors; warnings alone are no failure."""
        return int(_errors(result) > 0)


def _kind(problem: dict[str, Any]) -> tuple[str, str]:
    """The same for problems that differ in the item alone, by how their messages start."""
    words = _PARTICULARS.sub("", problem["message"]).split()
    return problem["severity"], " ".join(words[:_WORDS_OF_A_KIND])


def _errors(result: dict[str, Any]) -> int:
    return sum(problem["severity"] == "error" for problem in result["problems"])


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"
