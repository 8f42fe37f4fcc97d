"""modalloy evaluate"""

from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from modalloy.cli.verb import Verb, add_collection, add_extraction, open_for
from modalloy.errors import ConfigError


class Evaluate(Verb):
    """Compares dual encoders, alloys among them, on a split."""

    name = "evaluate"
    summary = "Compare dual encoders (alloys among them) on a split, with confidence intervals."
    example = "modalloy evaluate hacan:runs/a alloy:runs/alloy --collection demo --split test"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        from modalloy.search import DepthLadder, HierarchyConfig

        parser.add_argument("encoders", nargs="+", type=str, help="specs of dual encoders")
        parser.add_argument("--split", type=str, default="test", help="the split to evaluate on")
        parser.add_argument(
            "--fold-size",
            type=int | None,
            default=None,
            help="rank within folds of so many images, as COCO's 1K protocol does with 1000; by default among all",
        )
        parser.add_argument(
            "--stages",
            type=str | None,
            default=None,
            help="re-rank by HACAN encoders' local branches, each encoder alone and their average: "
            '"100:20" for 100 candidates by the focal and 20 by the cross-layer score, "100" for the focal one alone, '
            '"all:50" for all, "chosen" to choose them on validation',
        )
        parser.add_argument(
            "--global-weight",
            type=float | Literal["chosen"],
            default=HierarchyConfig.global_weight,
            help="what the embeddings' similarity counts in the stages, beside the focal score's "
            f'{HierarchyConfig.focal_weight:g} (HACAN\'s numbers); "chosen": the best of several on validation',
        )
        parser.add_class_arguments(DepthLadder, "chosen")
        add_collection(parser)
        add_extraction(parser)

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.encoders import load_encoder
        from modalloy.search import DepthLadder, HierarchyConfig
        from modalloy.workflow.evaluate import evaluate
        from modalloy.workflow.stages import evaluate_stages
        from modalloy.workflow.stages_config import CHOSEN, StagesConfig, stages_of

        depth = None if options.stages is None else stages_of(options.stages)
        if options.stages != CHOSEN and options.chosen != DepthLadder():
            raise ConfigError(f"--chosen's options say how --stages {CHOSEN} chooses; add that, or leave them out.")
        if options.stages is None and options.global_weight != HierarchyConfig.global_weight:
            raise ConfigError("--global-weight is one of --stages; add that, or leave it out.")
        encoders = [load_encoder(spec) for spec in options.encoders]
        on = open_for(options), options.split
        if options.stages is not None:
            config = StagesConfig(depth, options.global_weight, options.chosen, options.fold_size)
            return evaluate_stages(encoders, *on, config)
        return evaluate(encoders, *on, options.fold_size)

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        from modalloy.report import print_report
        from modalloy.report.depths import print_depths, times_lines

        for choice in result.get("depths", {}).values():
            print_depths(choice, console)
        print_report(result, console)
        if weights := result.get("global_weight"):
            told = "; ".join(f"{name} {weight:g}" for name, weight in weights.items())
            console.print(f"weight of the embeddings: {told}", markup=False)
        for line in times_lines(result):
            console.print(line, markup=False)
