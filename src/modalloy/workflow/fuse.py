"""Fitting the fused systems: score averages, the baseline B2 and HADA's two stages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch

from modalloy.data import Manifest
from modalloy.encoders import Encoder
from modalloy.errors import ConfigError
from modalloy.evaluation import metrics, rank_queries
from modalloy.fusion import (
    Alloy,
    Fuser,
    ScoreFusion,
    TowerConfig,
    TowerFuser,
    count_parameters,
    hidden_of_equal_size,
    input_shapes,
    tune_weights,
)
from modalloy.training.fusion import fit_fuser
from modalloy.training.fusion_training import FusionTraining
from modalloy.training.tracking import Tracker, TrackingConfig, tracked
from modalloy.workflow.features import Collection
from modalloy.workflow.index import index

Method = Literal[
    "mean of cosines",
    "validation-tuned weighted cosine",
    "B2 (concat-linear)",
    "B2 (as many parameters as HADA)",
    "HADA stage 1",
    "HADA stage 2",
]
METHODS: tuple[Method, ...] = get_args(Method)
UNTRAINED = METHODS[:2]

RANK_AVERAGE = "B1 (rank average)"
# All that the results table compares besides the inputs.
SYSTEMS: tuple[str, ...] = (*METHODS, RANK_AVERAGE)

# Short names for the command line and for folders.
SHORT_NAMES: dict[str, Method] = dict(
    zip(("mean", "tuned", "concat-linear", "concat-wide", "hada-1", "hada"), METHODS, strict=True)
)

# Of the towers, by the name of their folder.
_LABELS = {"hada": "HADA", **{name: SHORT_NAMES[name] for name in ("concat-linear", "concat-wide")}}


@dataclass(frozen=True)
class FusionConfig:
    """How a fusion is built and trained."""

    towers: TowerConfig = field(default_factory=TowerConfig)
    """The layers of HADA; the baselines B2 take their width, dropout and start from it."""
    first_stage: FusionTraining = field(default_factory=FusionTraining)
    """Training by the fused similarity alone."""
    second_stage: FusionTraining = field(default_factory=FusionTraining)
    """Further training, by the similarity that also weighs input encoders."""
    weighted_inputs: Literal["best", "all"] = "best"
    """Which inputs enter the weighted similarity: the best by validation RSum, as in the paper, or all."""

    def __post_init__(self) -> None:
        if self.weighted_inputs not in ("best", "all"):
            raise ConfigError(f"weighted_inputs must be 'best' or 'all', got {self.weighted_inputs!r}.")
        if self.towers.method not in ("hada", "hada-original"):
            raise ConfigError(
                "fusion.towers.method can't be set to anything but 'hada' or 'hada-original', "
                f"got {self.towers.method!r}: the baselines are methods of their own."
            )
        chosen_elsewhere = {
            "towers.hidden": (self.towers.hidden, 0),
            "towers.weighted_inputs": (self.towers.weighted_inputs, ()),
            "first_stage.seed": (self.first_stage.seed, 0),
            "second_stage.seed": (self.second_stage.seed, 0),
        }
        for name, (value, default) in chosen_elsewhere.items():
            if value != default:
                raise ConfigError(
                    f"fusion.{name} can't be set, got {value!r}: the method, the seeds and fusion.weighted_inputs "
                    "decide it."
                )

    def check_inputs(self, count: int) -> None:
        """Refuses a number of encoders that can't be fused, before anything is extracted.

        Raises:
            ConfigError: fewer than two encoders, or other than two for "hada-original".
        """
        if count < 2:
            raise ConfigError(f"a fusion takes at least 2 encoders, got {count}.")
        if self.towers.method == "hada-original" and count != 2:
            raise ConfigError(
                f"fusion.towers.method 'hada-original' fuses two encoders, got {count}; method 'hada' takes more."
            )

    @classmethod
    def small(cls) -> Self:
        """Settings for some thousand pairs and a processor: those of the demo.

        >>> FusionConfig.small().towers.token_dim
        64
        """
        return cls(
            towers=TowerConfig(token_dim=64),
            first_stage=FusionTraining(epochs=10, batch_size=128, learning_rate=1e-3, patience=10),
            second_stage=FusionTraining(epochs=5, batch_size=128, learning_rate=3e-4, patience=5),
            weighted_inputs="all",
        )


def validation_split(manifest_splits: Sequence[str]) -> str:
    """The split by which a fusion is chosen: "tune" if there is one, so that "val" is left to the inputs."""
    return "tune" if "tune" in manifest_splits else "val"


class FusionFit:
    """Fits fused systems on the same features, each into a folder of its own; finished ones are loaded.

    Args:
        encoders: the frozen dual encoders.
        collection: what they are fused on; trained on its split "train", with the augmented copies that its extraction
            makes, chosen on "tune" (or "val").
        config: see `FusionConfig`.
        folder: holds a folder per method and seed.
        tracker: also keeps each training's curves.

    Raises:
        ConfigError: see `FusionConfig.check_inputs`.
        DataError: the collection lacks a training or a validation split.
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        collection: Collection,
        config: FusionConfig,
        folder: Path,
        tracker: Tracker | None = None,
    ) -> None:
        config.check_inputs(len(encoders))
        self.encoders = list(encoders)
        self.config = config
        self.folder = folder
        self.tracker = tracker
        self.features = collection.paired(encoders, augmented=True)
        self.shapes = input_shapes(self.features.image, self.features.text)
        self.train = self.features.split("train")
        self._fitted: dict[tuple[Method, int], Fuser] = {}
        self.validation = self.features.split(validation_split(list(collection.manifest.counts())))

    def fit(self, method: Method, seed: int = 0) -> Fuser:
        """The fitted fuser of one method; where a seed decides nothing, it is the same for every seed.

        Raises:
            ConfigError: the method is unknown.
            CheckpointError: the folder holds a damaged alloy.
        """
        makers: dict[Method, Callable[[int], Fuser]] = {
            "mean of cosines": lambda _: ScoreFusion([1.0] * len(self.shapes), self.shapes),
            "validation-tuned weighted cosine": lambda _: ScoreFusion(self._tuned_weights(), self.shapes),
            "B2 (concat-linear)": lambda seed: self._both_stages(self._concat(0), "concat-linear", seed),
            "B2 (as many parameters as HADA)": lambda seed: self._both_stages(
                self._concat(self._hidden()), "concat-wide", seed
            ),
            "HADA stage 1": lambda seed: self._first_stage(self._hada(), "hada", seed),
            "HADA stage 2": lambda seed: self._both_stages(self._hada(), "hada", seed),
        }
        if method not in makers:
            raise ConfigError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}.")
        if (method, seed) not in self._fitted:
            self._fitted[method, seed] = makers[method](seed).eval()
        return self._fitted[method, seed]

    def _hada(self) -> TowerConfig:
        return replace(self.config.towers, weighted_inputs=())

    def _concat(self, hidden: int) -> TowerConfig:
        return replace(self.config.towers, method="concat-linear", hidden=hidden, weighted_inputs=())

    def _hidden(self) -> int:
        with torch.device("meta"):
            parameters = count_parameters(TowerFuser(self._hada(), self.shapes).towers)
        return hidden_of_equal_size(self.config.towers, self.shapes, parameters)

    def _first_stage(self, towers: TowerConfig, name: str, seed: int) -> TowerFuser:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fuser = TowerFuser(towers, self.shapes)
        return self._trained(fuser, self.config.first_stage, name, 1, seed)

    def _both_stages(self, towers: TowerConfig, name: str, seed: int) -> TowerFuser:
        first = self._first_stage(towers, name, seed)
        fuser = first.second_stage(self._weighted_inputs())
        return self._trained(fuser, self.config.second_stage, name, 2, seed)

    def _trained(self, fuser: TowerFuser, training: FusionTraining, name: str, stage: int, seed: int) -> TowerFuser:
        curve = f"{name}-stage-{stage}/seed-{seed}"
        label = f"{_LABELS[name]} stage {stage}, seed {seed}"
        training = replace(training, seed=seed)
        fit_fuser(fuser, training, self.train, self.validation, self.folder / curve, label, self.tracker, curve)
        return fuser

    def _weighted_inputs(self) -> tuple[int, ...]:
        if self.config.weighted_inputs == "all":
            return tuple(range(len(self.shapes)))
        rsums = [
            metrics(rank_queries(scores, self.validation.caption_image)).rsum
            for scores in self.validation.input_scores()
        ]
        return (rsums.index(max(rsums)),)

    def _tuned_weights(self) -> tuple[float, ...]:
        inputs = range(len(self.shapes))
        return tune_weights(
            [self.features.image.embeddings(i, self.validation.image_rows) for i in inputs],
            [self.features.text.embeddings(i, self.validation.caption_rows) for i in inputs],
            self.validation.caption_image,
        )


def fuse(
    encoders: Sequence[Encoder],
    collection: Collection,
    folder: str | Path,
    method: Method = "HADA stage 2",
    config: FusionConfig | None = None,
    seed: int = 0,
    tracking: TrackingConfig | None = None,
) -> Alloy:
    """Fuses dual encoders into an alloy, saved in `folder` with galleries to search; an interrupted training goes on.

    Args:
        encoders: two or more frozen dual encoders.
        collection: trained on its split "train", chosen on "tune" (or "val").
        folder: where the alloy goes.
        method: one of `METHODS`.
        config: see `FusionConfig`.
        seed: of the start, the batches and the dropout.
        tracking: see `TrackingConfig`; by default nothing is tracked.

    Raises:
        ConfigError: an unknown method, a tracker that can't start, or see `FusionConfig.check_inputs`.
        DataError: the collection lacks a training or a validation split.
    """
    folder, config = Path(folder), config or FusionConfig()
    config.check_inputs(len(encoders))
    parameters = {
        "method": method,
        "seed": seed,
        "fusion": asdict(config),
        "fingerprints": fingerprints(collection.manifest, {each.spec: each for each in encoders}),
    }
    with tracked(tracking or TrackingConfig(), folder, folder.name, parameters) as tracker:
        fits = FusionFit(encoders, collection, config, folder / "fits", tracker)
        alloy = Alloy(encoders, fits.fit(method, seed), method)
        alloy.save(folder)
        index(alloy, collection, folder)
    return alloy


def fingerprints(manifest: Manifest, encoders: Mapping[str, Encoder]) -> dict[str, Any]:
    """Which data and which weights a fusion is made of, for a tracker."""
    return {
        "collection": manifest.fingerprint,
        "encoders": {
            name: {modality: encoder.fingerprint(modality).digest for modality in encoder.modalities}
            for name, encoder in encoders.items()
        },
    }
