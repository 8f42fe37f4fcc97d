"""Runs the experiments of docs/experiments.md and prints their tables; what is done is reused.

python scripts/experiments.py tables --collection flickr8k/dataset_flickr8k.json --images flickr8k/images
python scripts/experiments.py ablations configs/flickr8k/ablations.yaml --images flickr8k/images

`tables` runs what scripts/experiments.yaml lists, and looks at the test part; `ablations` fits the experts of one
configuration and compares them on the validation part alone.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from modalloy.errors import ModalloyError
from modalloy.evaluation import compare, rank_queries
from modalloy.report import print_report
from modalloy.threads import set_threads
from modalloy.workflow.config import RunConfig, load_config
from modalloy.workflow.fusion_config import MEAN, TUNED
from modalloy.workflow.run import Run

ROOT = Path(__file__).parent.parent
LIST = Path(__file__).with_name("experiments.yaml")


def ablation(config: RunConfig) -> dict[str, Any]:
    """Fits every expert of a configuration with every seed, and compares them with the first on the validation part.

    An expert's epoch is chosen on the same items, alike for all of them; the test part isn't looked at.
    """
    if config.threads is not None:
        set_threads(config.threads)
    fits = Run(config).fits
    items, names = fits.validation, [each.name for each in config.inputs]
    systems = {
        name: [rank_queries(scores, items.caption_image)]
        for name, scores in zip(names, items.input_scores(), strict=True)
    }
    for method in (MEAN, TUNED):
        systems[method] = [rank_queries(items.scores(fits.fit(method)), items.caption_image)]
    for expert in config.fusion.experts:
        fitted = [fits.fit_expert(expert, seed) for seed in config.seeds]
        systems[expert.name] = [rank_queries(items.scores(each), items.caption_image) for each in fitted]
    comparison = compare(systems, items.caption_image, reference=config.fusion.experts[0].name, inputs=names)
    split = items.paired.manifest[int(items.image_rows[0])].split
    counts = {"images": len(items.image_rows), "captions": len(items.caption_rows)}
    return {split: counts, **comparison.to_dict()}


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in ("collection", "images", "features", "threads")}
    return {name: value for name, value in given.items() if value is not None}


def _show(name: str, result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({name: result}), flush=True)
        return
    console = Console(width=160)
    console.print(f"\n{name}", style="bold")
    print_report(result, console)


def main(arguments: list[str]) -> None:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tables", "ablations"))
    parser.add_argument("names", nargs="*", help="experiments of the list (default: all), or the configuration")
    for name, help in (
        ("collection", "the collection's file"),
        ("images", "folder of its pictures"),
        ("features", "folder of the features"),
    ):
        parser.add_argument(f"--{name}", help=help)
    parser.add_argument("--threads", type=int, help="threads of the arithmetic")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each table")
    options = parser.parse_intermixed_args(arguments)
    if options.what == "ablations":
        if not options.names:
            parser.error("ablations takes the configurations whose experts to compare")
        for path in options.names:
            config = load_config(path, _overrides(options))
            if not config.fusion.experts:
                parser.error(f"{path} has no experts to compare (fusion.experts)")
            _show(f"{path}, on the items that chose each epoch", ablation(config), options.json)
        return
    experiments = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    unknown = set(options.names) - set(experiments)
    if unknown:
        parser.error(f"no experiment is called {sorted(unknown)[0]!r}; {LIST.name} has {', '.join(experiments)}")
    for name in options.names or experiments:
        entry = experiments[name]
        config = load_config(ROOT / entry["config"], entry.get("set", {}) | _overrides(options))
        _show(name, Run(config).execute(), options.json)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ModalloyError as error:
        sys.exit(f"experiments.py: {error}")
