"""modalloy demo"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from modalloy.cli.run import Run, run_configuration


class Demo(Run):
    """The whole road on the pictures that come with modalloy."""

    name = "demo"
    summary = "Align, fuse, evaluate and search on the pictures that come with modalloy, in a few minutes."
    example = "modalloy demo --json"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        parser.add_argument("--folder", type=str, default="runs/demo", help="the run directory")

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.workflow.config import DEMO_CONFIG

        return run_configuration(DEMO_CONFIG, {"folder": options.folder}, options.threads)
