"""modalloy evaluate"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from modalloy.cli.verb import Verb, add_collection, add_extraction, open_for


class Evaluate(Verb):
    """Compares dual encoders, alloys among them, on a split."""

    name = "evaluate"
    summary = "Compare dual encoders (alloys among them) on a split, with confidence intervals."
    example = "modalloy evaluate hacan:runs/a alloy:runs/alloy --collection demo --split test"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        parser.add_argument("encoders", nargs="+", type=str, help="specs of dual encoders")
        parser.add_argument("--split", type=str, default="test", help="the split to evaluate on")
        parser.add_argument(
            "--fold_size",
            type=int | None,
            default=None,
            help="rank within folds of so many images, as COCO's 1K protocol does with 1000; by default among all",
        )
        add_collection(parser)
        add_extraction(parser)

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.encoders import load_encoder
        from modalloy.workflow.evaluate import evaluate

        encoders = [load_encoder(spec) for spec in options.encoders]
        return evaluate(encoders, open_for(options), options.split, options.fold_size)

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        from modalloy.report import print_report

        print_report(result, console)
