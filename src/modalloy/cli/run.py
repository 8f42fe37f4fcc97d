"""modalloy run"""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.text import Text

from modalloy.cli.verb import Verb
from modalloy.errors import ConfigError


class Run(Verb):
    """Does all the steps of a configuration."""

    name = "run"
    summary = "Do all the steps of a configuration; what is done is reused."
    example = "modalloy run runs/demo/config.yaml --set folder=runs/longer fusion.first_stage.epochs=20"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        parser.add_argument("config", type=str, help="YAML file")
        parser.add_argument(
            "--set", nargs="+", type=str, default=[], metavar="KEY=VALUE", help="dotted keys to override"
        )

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        return run_configuration(options.config, _overrides(options.set), options.threads)

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        from modalloy.report import print_report

        print_report(result, console)
        for name, staged in result.get("stages", {}).items():
            (weight,) = staged["global_weight"].values()
            title = f"{name}, stage by stage (the embeddings weigh {weight:g})"
            console.print(Text(title, style="bold"))
            print_report(staged, console)
        folder = result["folder"]
        # Reports from before it was recorded are reused.
        if "delivered" in result:
            console.print(Text.assemble("searched with: ", (result["delivered"], "bold")), soft_wrap=True)
        command = f'{_program()} search {shlex.quote(folder)} "a red telephone" -k 5'
        console.print(Text.assemble("report: ", (f"{folder}/report.html", "bold")), soft_wrap=True)
        console.print(Text.assemble("search: ", (command, "bold")), soft_wrap=True)


def _program() -> str:
    """What starts modalloy here; `make demo`, for instance, doesn't put the environment's commands on the path."""
    if shutil.which("modalloy"):
        return "modalloy"
    # The file that `python -m modalloy` has begun with isn't a command.
    by_module = Path(sys.argv[0]).name == "__main__.py"
    return f"{shlex.quote(sys.executable)} -m modalloy" if by_module else shlex.quote(sys.argv[0])


def run_configuration(path: str | Path, overrides: dict[str, Any], threads: int | None) -> dict[str, Any]:
    """Does the steps of a configuration; a thread count given on the command line goes before the file's."""
    from modalloy.workflow.config import load_config
    from modalloy.workflow.run import Run as RunDirectory

    given = {} if threads is None else {"threads": threads}
    return RunDirectory(load_config(path, overrides | given)).execute()


def _overrides(pairs: list[str]) -> dict[str, Any]:
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set takes KEY=VALUE, got {pair!r}.")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set takes KEY=VALUE with a value in YAML, got {pair!r}; check its quotes.") from None
    return overrides
