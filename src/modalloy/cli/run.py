"""modalloy run"""

from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

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
        from modalloy.workflow.config import load_config
        from modalloy.workflow.run import Run as RunDirectory

        return RunDirectory(load_config(options.config, _overrides(options.set))).execute()

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        from modalloy.report import print_report

        print_report(result, console)
        console.print(f"report: [bold]{result['folder']}/report.html[/bold]")
        console.print(f'search: [bold]modalloy search {result["folder"]} "a red telephone" -k 5[/bold]')


def _overrides(pairs: list[str]) -> dict[str, Any]:
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set takes KEY=VALUE, got {pair!r}.")
        overrides[key] = yaml.safe_load(value)
    return overrides
