"""The whole road of one configuration: extract, align, fuse, evaluate, index, report; what is done is reused."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from modalloy import __version__
from modalloy.align import AlignedEncoder
from modalloy.data import Manifest
from modalloy.data.build import Reject
from modalloy.data.splits import draw_splits, validation_split
from modalloy.encoders import Encoder, load_encoder
from modalloy.encoders.base import sha256_of_settings
from modalloy.errors import DataError
from modalloy.evaluation import Ranks, compare, rank_average, rank_queries
from modalloy.features.ray_data import require_ray
from modalloy.files import read_json, write_json
from modalloy.fusion import Alloy, Fuser, SplitFeatures
from modalloy.fusion.pretrained import pretrained_digest
from modalloy.index import Source
from modalloy.search import INDEX
from modalloy.threads import set_threads
from modalloy.training.align_fingerprint import deciding_settings
from modalloy.training.tracking import Tracker, tracked
from modalloy.workflow.align import align_backbones
from modalloy.workflow.collections import DEMO, counts_line, open_with_rejects, warn_of
from modalloy.workflow.config import InputConfig, RunConfig, features_folder, load_config, save_config
from modalloy.workflow.experts import expert_systems
from modalloy.workflow.features import Collection
from modalloy.workflow.fingerprints import fingerprints
from modalloy.workflow.fuse import FusionFit
from modalloy.workflow.fusion_config import RANK_AVERAGE, TUNED, UNTRAINED
from modalloy.workflow.hubs import held_back, ranks_with_hubs_held_back
from modalloy.workflow.index import index
from modalloy.workflow.report import write_run_report
from modalloy.workflow.stages import evaluate_stages
from modalloy.workflow.stages_config import WEIGHED, possible

_log = logging.getLogger(__name__)
PRODUCTS = ("config.json", "model.safetensors", INDEX, "report.html")
# Where things are and how fast they are made; the collection's contents and splits enter the fingerprint themselves.
_DECIDE_NOTHING = ("collection", "folder", "images", "splits", "extraction", "threads", "features", "tracking")


@dataclass(frozen=True)
class Delivered:
    """The fuser that a run is searched with."""

    name: str
    """Its method, as in the tables."""
    seed_position: int
    """Which of the configuration's seeds it was fitted with."""
    fuser: Fuser
    """The fuser itself."""


class Run:
    """One run directory, and the steps that fill it.

    Args:
        config: see `RunConfig`.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.folder = Path(config.folder)
        self.seconds: dict[str, float] = {}
        self._tracker = Tracker()

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """The run in a directory that `execute` has filled, or begun to.

        Raises:
            DataError: the folder is no run directory.
        """
        config = Path(folder) / "config.yaml"
        if not config.exists():
            raise DataError(f"{folder} is no run directory (no config.yaml); name one made by `modalloy run`.")
        return cls(load_config(config, {"folder": str(folder)}))

    def execute(self) -> dict[str, Any]:
        """Does every step that isn't done yet, and returns what `report.json` holds."""
        if self.config.extraction.runner == "ray":
            require_ray()
        self._settle_threads()
        save_config(self.config, self.folder / "config.yaml")
        fingerprint = self._fingerprint()
        path = self.folder / "report.json"
        if path.exists():
            report = read_json(path)
            if report.get("fingerprint") == fingerprint and all((self.folder / name).exists() for name in PRODUCTS):
                return report | {"folder": str(self.folder)}
        self._require_splits()
        parameters = self._deciding() | {"splits": self.config.to_dict()["splits"], "fingerprint": fingerprint}
        with tracked(self.config.tracking, self.folder, self.folder.name, parameters) as self._tracker:
            return self._execute(fingerprint)

    def _execute(self, fingerprint: str) -> dict[str, Any]:
        alloy = self._fit()
        with self._timed("index"):
            index(alloy, self.collection, self.folder, self._source)
        with self._timed("evaluate"):
            report = self.evaluate()
        report |= {"folder": str(self.folder), "fingerprint": fingerprint, "seconds": self.seconds}
        with self._timed("report"):
            write_run_report(self, report)
        path = self.folder / "report.json"
        write_json(path, report)
        encoders = {each.name: encoder for each, encoder in zip(self.config.inputs, self.encoders, strict=True)}
        self._tracker.parameters({"fingerprints": fingerprints(self.collection.manifest, encoders)})
        self._tracker.report(report, [path, self.folder / "report.html"])
        return report

    def write_report(self) -> dict[str, Any]:
        """Writes `report.html` anew from the run's results.

        Raises:
            DataError: the run isn't finished, or its configuration or encoders have changed since.
        """
        report = read_json(self.folder / "report.json")
        if report.get("fingerprint") != self._fingerprint():
            raise DataError(
                f"{self.folder} has changed since its report was made (configuration, collection, encoders or "
                f"version); bring it up to date: modalloy run {self.folder / 'config.yaml'}"
            )
        write_run_report(self, report)
        return report | {"folder": str(self.folder)}

    @cached_property
    def collection(self) -> Collection:
        """The images, the captions and the folder of their features."""
        return Collection(self._opened[0], features_folder(self.config), self.config.extraction)

    @cached_property
    def encoders(self) -> list[Encoder]:
        """The input encoders, aligned where the configuration says so."""
        return [self._encoder(position, each) for position, each in enumerate(self.config.inputs)]

    @cached_property
    def fits(self) -> FusionFit:
        """The fits of all fused systems."""
        encoders = self.encoders
        with self._timed("extract"):
            names = [each.name for each in self.config.inputs]
            folder = self.folder / "fits"
            return FusionFit(encoders, self.collection, self.config.fusion, folder, names, self._tracker)

    @cached_property
    def test(self) -> SplitFeatures:
        """The test split's features, read for the final comparison alone."""
        return self.fits.features.split("test")

    @cached_property
    def ranks(self) -> dict[str, list[Ranks]]:
        """Every system's ranks on the test split, one per seed where a seed decides anything."""
        test = self.test
        inputs = test.input_scores()
        ranks: dict[str, list[Ranks]] = {
            each.name: [rank_queries(scores, test.caption_image)]
            for each, scores in zip(self.config.inputs, inputs, strict=True)
        }
        ranks |= {method: self._ranks_of(method) for method in UNTRAINED}
        ranks[RANK_AVERAGE] = [rank_average(inputs, test.caption_image)]
        ranks |= {method: self._ranks_of(method) for method in self.fits.methods if method not in UNTRAINED}
        if cut := self.config.fusion.cut_system:
            ranks[cut] = [self._ranked(fuser) for fuser in self._deliverable]
        return ranks | {held_back(system): self._ranks_of_held_back(system) for system in self._held_back()}

    @cached_property
    def delivered(self) -> "Delivered":
        """The fuser to search with: the seed that is best on validation."""
        rsums = [self.fits.validation.rsum(fuser) for fuser in self._deliverable]
        best = rsums.index(max(rsums))
        fusion = self.config.fusion
        return Delivered(fusion.cut_system or fusion.delivered, best, self._deliverable[best])

    @cached_property
    def _deliverable(self) -> list[Fuser]:
        """The fuser of each seed that could be searched with."""
        return [self.fits.cut(self.fits.fit(self.config.fusion.delivered, seed)) for seed in self.config.seeds]

    def evaluate(self) -> dict[str, Any]:
        """Compares all systems on the test split."""
        inputs = [each.name for each in self.config.inputs]
        comparison = compare(self.ranks, self.test.caption_image, reference=self._references(), inputs=inputs)
        regime = self.fits.regime
        found: dict[str, Any] = {} if regime is None else {"regime": regime.to_dict() | {"sentence": regime.sentence()}}
        if stages := self._stages():
            found["stages"] = stages
        return {"test": self.test.counts(), **comparison.to_dict(), "delivered": self.delivered.name, **found}

    def _stages(self) -> dict[str, Any]:
        """What each input with a local branch gives on the test split, stage by stage."""
        return {
            each.name: evaluate_stages([encoder], self.collection, "test", possible(self.config.stages, encoder.local))
            for each, encoder in zip(self.config.inputs, self.encoders, strict=True)
            if isinstance(encoder, AlignedEncoder) and encoder.local is not None
        }

    def _settle_threads(self) -> None:
        """Sets the thread count: the configured one, else the one that the run began with, else PyTorch's.

        It changes the last bits of a training, so an interrupted run goes on with its own.
        """
        path = self.folder / "threads.json"
        threads = self.config.threads
        if threads is None and path.exists():
            threads = int(read_json(path)["threads"])
        if threads is not None:
            set_threads(threads)
        write_json(path, {"threads": torch.get_num_threads()})

    @property
    def _source(self) -> Source:
        """Where the index's pictures come from."""
        config, root = self.config, str(self.collection.manifest.root.resolve())
        collection = config.collection if config.collection == DEMO else os.path.abspath(config.collection)
        return Source("", collection, config.images and os.path.abspath(config.images), root)

    @cached_property
    def _opened(self) -> tuple[Manifest, list[Reject]]:
        """The collection with the splits of this run, and what had to be left out of it."""
        manifest, rejects = open_with_rejects(self.config.collection, self.config.images)
        warn_of(rejects)
        drawn = draw_splits(manifest, self.config.splits)
        if drawn != manifest:
            _log.info("%s with the run's own splits: %s", self.config.collection, counts_line(drawn))
        return drawn, rejects

    def _require_splits(self) -> None:
        """Finds what would stop the run halfway before its work begins."""
        counts, rejects = self.collection.manifest.counts(), self._opened[1]
        why = f"; {len(rejects):,} were left out, first {rejects[0].id}: {rejects[0].reason}" if rejects else ""
        aligned = [each.align.split for each in self.config.inputs if each.encoder is None]
        for split in ("train", *aligned, validation_split(counts), "test"):
            if not counts.get(split, {"captions": 0})["captions"]:
                raise DataError(
                    f"{self.config.collection} has no captioned image in {split!r}, which a run needs; "
                    f"its counts are {counts}{why}."
                )

    def _fit(self) -> Alloy:
        """Fits every system and saves the alloy to search with."""
        fits = self.fits
        with self._timed("fuse"):
            for method in fits.methods:
                for seed in self._seeds(method):
                    fits.fit(method, seed)
            alloy = Alloy(self.encoders, self.delivered.fuser, f"{self.folder.name} ({self.delivered.name})")
            alloy.save(self.folder)
        return alloy

    def _references(self) -> list[str]:
        """What all others are compared with: the delivered system, and HADA's first stage beside its second."""
        delivered = self.config.fusion.delivered
        corrected = [held_back(delivered)] if self.config.hold_back_hubs else []
        first = ["HADA stage 1"] if delivered == "HADA stage 2" and "HADA stage 1" in self.fits.methods else []
        cut = [self.config.fusion.cut_system] if self.config.fusion.cut_system else []
        return [*cut, delivered, *corrected, *first]

    def _held_back(self) -> tuple[str, ...]:
        """The systems that are also ranked with hubs held back."""
        if not self.config.hold_back_hubs:
            return ()
        experts = expert_systems(self.config.fusion.experts)
        return (TUNED, *experts) if experts else self.fits.methods

    def _ranks_of_held_back(self, method: str) -> list[Ranks]:
        fits = self.fits
        return [
            ranks_with_hubs_held_back(fits.fit(method, seed), fits.train, fits.validation, self.test)
            for seed in self._seeds(method)
        ]

    def _ranks_of(self, method: str) -> list[Ranks]:
        return [self._ranked(self.fits.fit(method, seed)) for seed in self._seeds(method)]

    def _ranked(self, fuser: Fuser) -> Ranks:
        return rank_queries(self.test.scores(fuser), self.test.caption_image)

    def _seeds(self, method: str) -> tuple[int, ...]:
        return self.config.seeds[:1] if method in UNTRAINED else self.config.seeds

    def _encoder(self, position: int, each: InputConfig) -> Encoder:
        if each.encoder is not None:
            return load_encoder(each.encoder)
        assert each.image is not None and each.text is not None
        with self._timed("extract"):
            self.collection.store(load_encoder(each.image), "image")
            self.collection.store(load_encoder(each.text), "text")
        with self._timed("align"):
            folder = self.folder / "inputs" / str(position + 1)
            return align_backbones(each.image, each.text, self.collection, folder, each.align, each.name)

    def _deciding(self) -> dict[str, Any]:
        """The configuration without what decides nothing."""
        return {key: value for key, value in self.config.to_dict().items() if key not in _DECIDE_NOTHING}

    def _fingerprint(self) -> str:
        """SHA-256 of all that decides the report: the configuration, the collection and the encoders."""
        manifest = self.collection.manifest
        config = self._deciding()
        # What an encoder is stands in its fingerprint; its spec may name a folder in several ways.
        encoders = [
            [load_encoder(spec) for spec in (each.encoder, each.image, each.text) if spec]
            for each in self.config.inputs
        ]
        extraction = self.config.to_dict()["extraction"]
        if extraction["augmentations"]:
            config["augmentation"] = [extraction["augmentations"], extraction["augmentation"]]
        # What it is stands in its digest.
        if (pretrained := config["fusion"].pop("pretrained")) is not None:
            config["fusion"]["pretrained"] = pretrained_digest(pretrained)
        for stage in ("first_stage", "second_stage"):
            config["fusion"][stage] = getattr(self.config.fusion, stage).deciding()
        # Reports from before there were these choices stay valid, too.
        later = [(config["fusion"], "vector_dim")]
        for each in config["fusion"]["experts"]:
            later += [(each, "teachers"), (each["training"], "prefixes"), (each["training"], "teacher_temperature")]
        for settings, name in later:
            if settings[name] in (None, []):
                del settings[name]
        if self.config.stages == WEIGHED:
            del config["stages"]
        config["inputs"] = [{"name": each.name, "align": deciding_settings(each.align)} for each in self.config.inputs]
        return sha256_of_settings(
            {
                "version": __version__,
                "config": config,
                "collection": manifest.fingerprint,
                "splits": [item.split for item in manifest],
                "families": manifest.families.tolist(),
                "encoders": [
                    [encoder.fingerprint(modality).digest for encoder in each for modality in encoder.modalities]
                    for each in encoders
                ],
            }
        )

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = round(self.seconds.get(step, 0) + time.perf_counter() - start, 2)
