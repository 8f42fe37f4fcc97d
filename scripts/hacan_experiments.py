"""Aligns two backbones in several ways, with several seeds, and prints what each stage of retrieval gives.

python scripts/hacan_experiments.py configs/flickr8k/hacan.yaml --images flickr8k/images

The tables of docs/hacan.md. How much the embeddings count beside the local scores is chosen on `tune`, once for each
encoder; the table is of the part that the configuration reports on. Finished alignments and features are reused.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from rich.console import Console

from modalloy import __version__
from modalloy.align import AlignedEncoder
from modalloy.data.splits import SplitsConfig, draw_splits
from modalloy.encoders.base import MODALITIES, sha256_of_settings
from modalloy.errors import ConfigError, ModalloyError
from modalloy.evaluation import Ranks, compare, rank_queries
from modalloy.files import atomic_path
from modalloy.report import print_report
from modalloy.search import HierarchyConfig
from modalloy.search.global_weight import WEIGHTS
from modalloy.threads import set_threads
from modalloy.training.align_config import AlignConfig
from modalloy.workflow.align import align_backbones
from modalloy.workflow.collections import open_collection
from modalloy.workflow.evaluate import with_counts
from modalloy.workflow.features import Collection
from modalloy.workflow.stages import rank_stages
from modalloy.workflow.stages_config import CHOSEN, StagesConfig


@dataclass(frozen=True)
class HacanExperiments:
    """What is aligned, how, and what of it is compared."""

    collection: str
    """Path of a collection."""
    features: str
    """Folder of the features."""
    folder: str
    """Folder of the aligned encoders."""
    image: str
    """Spec of the image backbone."""
    text: str
    """Spec of the text backbone."""
    alignments: dict[str, AlignConfig]
    """How they are aligned, by name; a seed takes the place of each one's own."""
    averages: dict[str, list[str]] = field(default_factory=dict)
    """Alignments whose scores are averaged, by the average's name."""
    depth: HierarchyConfig = field(default_factory=HierarchyConfig)
    """The candidates of each stage."""
    reference: list[str] = field(default_factory=list)
    """The systems that the others are compared with."""
    images: str | None = None
    """Folder of the pictures, where the collection is a file that names them only."""
    splits: SplitsConfig = field(default_factory=SplitsConfig)
    """How the splits are drawn."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each alignment is trained once per seed."""

    def __post_init__(self) -> None:
        for name, members in self.averages.items():
            if unknown := sorted(set(members) - set(self.alignments)):
                raise ConfigError(f"the average {name!r} is of {unknown[0]!r}, which is no alignment.")
            if bare := [each for each in members if self.alignments[each].local.dim is None]:
                raise ConfigError(f"the average {name!r} is of {bare[0]!r}, which has no local branch to average by.")

    def members(self, name: str) -> list[str]:
        """The alignments that an average is of; an alignment is its own."""
        return self.averages.get(name, [name])


class Experiments:
    """The encoders of a configuration, and their ranks.

    Args:
        config: see `HacanExperiments`.
        split: what is ranked.
        device: where local scores are computed.
    """

    def __init__(self, config: HacanExperiments, split: str, device: str) -> None:
        self.config, self.split, self.device = config, split, device
        manifest = draw_splits(open_collection(config.collection, config.images), config.splits)
        self.collection = Collection(manifest, config.features)

    def encoder(self, name: str, seed: int) -> AlignedEncoder:
        """An alignment with a seed, trained if it isn't yet."""
        config = self.config
        folder = Path(config.folder) / f"{name.replace(' ', '-')}-{seed}"
        aligned = align_backbones(
            config.image, config.text, self.collection, folder, replace(config.alignments[name], seed=seed), name
        )
        return aligned.to(self.device)

    def systems(self, names: Sequence[str], seeds: Sequence[int]) -> dict[str, list[Ranks]]:
        """The ranks of alignments and averages by each stage, one a seed."""
        found: dict[str, list[Ranks]] = {}
        for seed in seeds:
            for name in names:
                encoders = [self.encoder(each, seed) for each in self.config.members(name)]
                for stage, ranks in self._kept_ranks(encoders).items():
                    found.setdefault(f"{name}, {stage}", []).append(ranks)
        return found

    def _kept_ranks(self, encoders: Sequence[AlignedEncoder]) -> dict[str, Ranks]:
        made_of = {
            "encoders": [encoder.fingerprint(modality).digest for encoder in encoders for modality in MODALITIES],
            "collection": self.collection.manifest.fingerprint,
            "splits": [item.split for item in self.collection.manifest],
            "depth": asdict(self.config.depth),
            "weights": WEIGHTS,
            "version": __version__,
            "split": self.split,
        }
        path = Path(self.config.folder) / "ranks" / f"{sha256_of_settings(made_of)}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as partial:
                torch.save({stage: asdict(ranks) for stage, ranks in self._ranks(encoders).items()}, partial)
        return {stage: Ranks(**each) for stage, each in torch.load(path, weights_only=True).items()}

    def _ranks(self, encoders: Sequence[AlignedEncoder]) -> Mapping[str, Ranks]:
        if encoders[0].local is None:
            items = self.collection.paired(encoders).split(self.split)
            (scores,) = items.input_scores()
            return {"global": rank_queries(scores, items.caption_image)}
        # On the items to choose by there is nothing else to choose by.
        weight = HierarchyConfig.global_weight if self.split == "tune" else CHOSEN
        stages = StagesConfig(self.config.depth, weight, timed=1)
        return rank_stages(encoders, self.collection, self.split, stages).ranks

    def compared(self, names: Sequence[str]) -> dict[str, Any]:
        """The table of alignments and averages, ready for JSON."""
        systems = self.systems(names, self.config.seeds)
        items = self.collection.paired([self.encoder(self.config.members(names[0])[0], self.config.seeds[0])])
        test = items.split(self.split)
        # Of some of the alignments alone, a reference may be none.
        reference = [name for name in self.config.reference if name in systems]
        return with_counts(self.split, test.counts(), compare(systems, test.caption_image, reference).to_dict())


def load(path: str, overrides: Mapping[str, Any]) -> HacanExperiments:
    """Reads a configuration; an override of None is none."""
    import yaml

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(HacanExperiments, "experiments")
    values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    values |= {name: value for name, value in overrides.items() if value is not None}
    return parser.instantiate(parser.parse_object({"experiments": values})).experiments


def main(arguments: list[str]) -> None:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file")
    for name in ("collection", "images", "features", "folder"):
        parser.add_argument(f"--{name}", help=f"in place of the configuration's {name}")
    parser.add_argument("--only", nargs="+", help="alignments or averages (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="in place of the configuration's")
    parser.add_argument("--split", choices=("tune", "test"), default="test", help="what to rank (default: test)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help=f"where to rank (default here: {device})")
    parser.add_argument("--align_only", action="store_true", help="train, and rank nothing: to train several at once")
    parser.add_argument("--threads", type=int, help="threads of the arithmetic")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        set_threads(options.threads)
    named = ("collection", "images", "features", "folder", "seeds")
    config = load(options.config, {name: getattr(options, name) for name in named})
    names = options.only or [*config.alignments, *config.averages]
    if unknown := sorted(set(names) - {*config.alignments, *config.averages}):
        parser.error(f"{options.config} has no alignment or average {unknown[0]!r}")
    experiments = Experiments(config, options.split, options.device)
    if options.align_only:
        aligned = dict.fromkeys(each for name in names for each in config.members(name))
        for seed in config.seeds:
            for name in aligned:
                experiments.encoder(name, seed)
        return
    result = experiments.compared(names)
    if options.json:
        print(json.dumps(result))
    else:
        print_report(result, Console(width=160))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ModalloyError as error:
        sys.exit(f"hacan_experiments.py: {error}")
