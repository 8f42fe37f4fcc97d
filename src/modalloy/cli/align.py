"""modalloy align"""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.text import Text

from modalloy.cli.verb import Verb, add_collection, add_extraction, open_for


class Align(Verb):
    """Aligns two backbones into a dual encoder."""

    name = "align"
    summary = "Make one dual encoder out of an image and a text backbone (HACAN)."
    example = "modalloy align efficientnet-lite0 minilm --collection demo --out runs/aligned"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        from modalloy.training.align_config import AlignConfig

        parser.add_argument("image", type=str, help="spec of the image backbone")
        parser.add_argument("text", type=str, help="spec of the text backbone")
        parser.add_argument("--out", type=str, required=True, help="folder of the aligned encoder")
        parser.add_argument("--name", type=str | None, default=None, help="its name, for tables")
        add_collection(parser)
        add_extraction(parser)
        parser.add_class_arguments(AlignConfig, "align")

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        from modalloy.workflow.align import align_backbones

        encoder = align_backbones(
            options.image, options.text, open_for(options), options.out, config=options.align, name=options.name
        )
        return {"encoder": encoder.spec, "name": encoder.name, "dim": encoder.dim("image")}

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        made = f"{result['name']}, {result['dim']} wide: use it as "
        console.print(Text.assemble(made, (result["encoder"], "bold")), soft_wrap=True)
