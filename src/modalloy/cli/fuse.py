"""modalloy fuse"""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.text import Text

from modalloy.cli.verb import Verb, add_collection, add_extraction, open_for


class Fuse(Verb):
    """Fuses dual encoders into an alloy."""

    name = "fuse"
    summary = "Fuse two or more dual encoders into one alloy."
    example = "modalloy fuse hacan:runs/a hacan:runs/b --collection demo --out runs/alloy"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        from modalloy.training.tracking import TrackingConfig
        from modalloy.workflow.experts import ALLOY
        from modalloy.workflow.fusion_config import SHORT_NAMES, FusionConfig
        from modalloy.workflow.make_alloy import AUTO

        parser.add_argument("encoders", nargs="+", type=str, help="specs of dual encoders")
        parser.add_argument("--out", type=str, required=True, help="folder of the alloy")
        methods = "; ".join(f"{short}: {method}" for short, method in SHORT_NAMES.items())
        methods += f"; {ALLOY}: the configured experts, mixed with the inputs; the name of an expert: that one alone"
        methods += f"; {AUTO}: fits them, and returns what is surely best on validation, or else the simplest"
        parser.add_argument("--method", type=str, default="hada", help=methods)
        parser.add_argument("--seed", type=int, default=0, help="seed of the start, the batches and the dropout")
        add_collection(parser)
        add_extraction(parser)
        parser.add_class_arguments(FusionConfig, "fusion")
        parser.add_class_arguments(TrackingConfig, "tracking")

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.encoders import load_encoder
        from modalloy.workflow.fusion_config import SHORT_NAMES
        from modalloy.workflow.make_alloy import fuse_with_findings

        fused = fuse_with_findings(
            [load_encoder(spec) for spec in options.encoders],
            open_for(options),
            Path(options.out),
            method=SHORT_NAMES.get(options.method, options.method),
            config=options.fusion,
            seed=options.seed,
            names=options.encoders,
            tracking=options.tracking,
        )
        alloy = fused.alloy
        result: dict[str, Any] = {"encoder": alloy.spec, "name": alloy.name, "dim": alloy.dim("image")}
        if fused.regime is not None:
            result["regime"] = fused.regime.to_dict() | {"sentence": fused.regime.sentence()}
        if fused.choice is not None:
            result["choice"] = fused.choice.to_dict()
        return result

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        from modalloy.report.ladder import ladder_table

        if "choice" in result:
            console.print(ladder_table(result["choice"]))
            console.print(Text(result["choice"]["sentence"]))
        if "regime" in result:
            console.print(Text(result["regime"]["sentence"]))
        made = f"{result['name']}, {result['dim']} wide: use it as "
        console.print(Text.assemble(made, (result["encoder"], "bold")), soft_wrap=True)
