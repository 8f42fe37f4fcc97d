"""modalloy report"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from modalloy.cli.run import Run


class Report(Run):
    """Writes a run's report anew and prints its table."""

    name = "report"
    summary = "Write the report of a finished run anew and print its table."
    example = "modalloy report runs/demo"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        parser.add_argument("run", type=str, help="run directory")

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.workflow.run import Run as RunDirectory

        return RunDirectory.open(options.run).write_report()
