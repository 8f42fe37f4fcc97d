"""Runs the experiments of docs/experiments.md and prints their tables; what is done is reused.

python scripts/experiments.py tables --collection flickr8k/dataset_flickr8k.json --images flickr8k/images
python scripts/experiments.py ablations configs/flickr8k/ablations.yaml --images flickr8k/images
python scripts/experiments.py lengths configs/flickr8k/lengths.yaml --images flickr8k/images

`tables` runs what scripts/experiments.yaml lists, and looks at the part that their tables are of. `ablations` fits
the experts of a configuration and compares them on `tune`, the items to choose by, alone; `lengths` does so with cut
vectors.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from modalloy.errors import ModalloyError
from modalloy.evaluation import EmbeddingScores, ScoreFunction, compare, rank_queries
from modalloy.fusion import Fuser, Rotated, SplitFeatures, truncate
from modalloy.report import print_report
from modalloy.threads import set_threads
from modalloy.workflow.config import load_config
from modalloy.workflow.experts import ALLOY
from modalloy.workflow.fuse import FusionFit
from modalloy.workflow.fusion_config import MEAN, TUNED
from modalloy.workflow.run import Run

ROOT = Path(__file__).parent.parent
LIST = Path(__file__).with_name("experiments.yaml")
LENGTHS = (32, 64, 128, 256)

# The similarities of each system, one or one a seed.
Systems = dict[str, list[ScoreFunction]]


def ablations(fits: FusionFit, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Fits every expert with every seed, and compares them with the first on the validation part.

    An expert's epoch, and its weight where it is mixed with the inputs, are chosen on the same items, alike for all of
    them; the test part isn't looked at.

    Returns:
        The comparison of the experts alone, and that of the experts mixed with the inputs.
    """
    items = fits.validation
    untrained: Systems = {name: [scores] for name, scores in zip(fits.names, items.input_scores(), strict=True)}
    untrained |= {method: [items.scores(fits.fit(method))] for method in (MEAN, TUNED)}
    alone, mixed = dict(untrained), dict(untrained)
    for expert in fits.config.experts:
        fitted = [fits.fit_expert(expert, seed) for seed in seeds]
        alone[expert.name] = [items.scores(each) for each in fitted]
        mixed[expert.name] = [items.scores(fits.mixture([each])) for each in fitted]
    reference = fits.config.experts[0].name
    return {
        "alone": _compared(items, alone, reference, fits.names),
        "mixed with the inputs": _compared(items, mixed, reference, fits.names),
    }


def lengths(fits: FusionFit, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Fits every expert and the alloy with every seed, and compares their vectors with the alloy's, whole and cut.

    A longer vector is cut after a rotation fitted on the training vectors (`Rotated`), and an expert's as it is, too.

    Returns:
        The comparison of the whole vectors, and that at each length.
    """
    fits.config.check_method(ALLOY)
    items = fits.validation
    whole: Systems = {}
    systems: dict[int, Systems] = {length: {} for length in LENGTHS}
    for seed in seeds:
        fusers: dict[str, Fuser] = {ALLOY: fits.fit(ALLOY, seed)}
        fusers |= {each.name: fits.fit_expert(each, seed) for each in fits.config.experts}
        for name, fuser in fusers.items():
            vectors = {"": items.vectors(fuser), ", rotated": items.vectors(Rotated.fit(fuser, fits.train))}
            whole.setdefault(name, []).append(EmbeddingScores(*vectors[""]))
            if name == ALLOY:
                del vectors[""]  # Its parts stand side by side, so that its first numbers are those of one part.
            for length, of_length in systems.items():
                for how, (images, captions) in vectors.items():
                    if length < fuser.dim or (length == fuser.dim and not how):
                        scores = EmbeddingScores(truncate(images, length), truncate(captions, length))
                        of_length.setdefault(name + how, []).append(scores)
    compared = {f"{length} numbers": _compared(items, each, f"{ALLOY}, rotated") for length, each in systems.items()}
    return {"whole vectors": _compared(items, whole, ALLOY)} | compared


def _compared(
    items: SplitFeatures, systems: Systems, reference: str, inputs: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    ranks = {name: [rank_queries(each, items.caption_image) for each in runs] for name, runs in systems.items()}
    comparison = compare(ranks, items.caption_image, reference=reference, inputs=inputs)
    split = items.paired.manifest[int(items.image_rows[0])].split
    return {split: items.counts(), **comparison.to_dict()}


ON_VALIDATION = {"ablations": ablations, "lengths": lengths}


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
    parser.add_argument("what", choices=("tables", *ON_VALIDATION))
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
    if options.what in ON_VALIDATION:
        if not options.names:
            parser.error(f"{options.what} takes the configurations whose experts to compare")
        for path in options.names:
            config = load_config(path, _overrides(options))
            if not config.fusion.experts:
                parser.error(f"{path} has no experts to compare (fusion.experts)")
            if config.threads is not None:
                set_threads(config.threads)
            for how, result in ON_VALIDATION[options.what](Run(config).fits, config.seeds).items():
                _show(f"{path}, {how}, on the items that chose each epoch", result, options.json)
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
