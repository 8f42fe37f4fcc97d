"""Fitting the fused systems: score averages, the baseline B2 and HADA's two stages."""

import copy
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, Self

import torch

from modalloy.data.splits import validation_split
from modalloy.encoders import Encoder
from modalloy.encoders.checkpoint import packed_weights
from modalloy.errors import ConfigError
from modalloy.evaluation import metrics, rank_queries
from modalloy.fusion import (
    Fuser,
    Mixture,
    Rotated,
    ScoreFusion,
    SplitFeatures,
    TowerConfig,
    TowerFuser,
    choose_weights,
    count_parameters,
    hidden_of_equal_size,
    input_shapes,
)
from modalloy.fusion.pretrained import pretrained_fuser, start_from, take_similarity
from modalloy.training.fusion import fit_fuser
from modalloy.training.fusion_training import FusionTraining
from modalloy.training.teacher import Teacher
from modalloy.training.tracking import Tracker
from modalloy.workflow.experts import ALLOY, ExpertConfig, expert_systems
from modalloy.workflow.features import Collection
from modalloy.workflow.fusion_config import SHORT_NAMES, FusionConfig
from modalloy.workflow.regime import Regime, detect_regime
from modalloy.workflow.weighted_inputs import positions_of

_log = logging.getLogger(__name__)

# Of the towers, by the name of their folder.
_LABELS = {"hada": "HADA", **{name: SHORT_NAMES[name] for name in ("concat-linear", "concat-wide")}}


class FusionFit:
    """Fits fused systems on the same features, each into a folder of its own; finished ones are loaded.

    Args:
        encoders: the frozen dual encoders.
        collection: what they are fused on; trained on its split "train", with the augmented copies that its extraction
            makes, chosen on "tune" (or "val").
        config: see `FusionConfig`.
        folder: holds a folder per method and seed.
        names: by which the configuration and the messages call the encoders; by default their specs.
        tracker: also keeps each training's curves.

    Raises:
        ConfigError: see `FusionConfig.check_inputs` and `pretrained_fuser`.
        DataError: the collection lacks a training or a validation split.
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        collection: Collection,
        config: FusionConfig,
        folder: Path,
        names: Sequence[str] | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        self.names = [encoder.spec for encoder in encoders] if names is None else list(names)
        config.check_inputs(self.names)
        self.pretrained = config.pretrained and pretrained_fuser(config.pretrained, encoders, config.towers)
        self.encoders = list(encoders)
        self.config = config
        self.folder = self._root = folder
        self.tracker = tracker
        self.features = collection.paired(encoders, augmented=True)
        self.shapes = input_shapes(self.features.image, self.features.text)
        config.check_lengths(sum(shape.dim for shape in self.shapes))
        self.train = self.features.split("train")
        self._fitted: dict[tuple[str, int], Fuser] = {}
        self._experts: dict[tuple[ExpertConfig, int], TowerFuser] = {}
        self.validation = self.features.split(validation_split(collection.manifest.counts()))

    @property
    def methods(self) -> tuple[str, ...]:
        """What a run fits and compares."""
        return (*self.config.methods, *expert_systems(self.config.experts))

    def fit(self, method: str, seed: int = 0) -> Fuser:
        """The fitted fuser of one method; where a seed decides nothing, it is the same for every seed.

        Raises:
            ConfigError: the method is unknown.
            CheckpointError: the folder holds a damaged alloy.
        """
        makers: dict[str, Callable[[int], Fuser]] = {
            "mean of cosines": lambda _: ScoreFusion([1.0] * len(self.shapes), self.shapes),
            "validation-tuned weighted cosine": lambda _: ScoreFusion(self.sought_weights([]), self.shapes),
            "B2 (concat-linear)": lambda seed: self._both_stages(self._concat(0), "concat-linear", seed),
            "B2 (as many parameters as HADA)": lambda seed: self._both_stages(
                self._concat(self._hidden()), "concat-wide", seed
            ),
            "HADA stage 1": lambda seed: self._weighed(self._first_stage(self._hada(), "hada", seed)),
            "HADA stage 2": lambda seed: self._both_stages(self._hada(), "hada", seed),
        }
        experts = self.config.experts
        makers |= {each.system: partial(self._mixture, [each]) for each in experts}
        makers |= {each.name: partial(self.fit_expert, each) for each in experts}
        makers[ALLOY] = partial(self._mixture, [each for each in experts if each.in_alloy])
        self.config.check_method(method)
        if (method, seed) not in self._fitted:
            self._fitted[method, seed] = makers[method](seed).eval()
        return self._fitted[method, seed]

    def expert(self, method: Literal["hada", "concat-linear"], seed: int = 0) -> TowerFuser:
        """A first stage of HADA or B2, whose vector is the fused one alone."""
        return self._first_stage(self._hada() if method == "hada" else self._concat(0), method, seed).eval()

    def fit_expert(self, expert: ExpertConfig, seed: int = 0) -> TowerFuser:
        """A configured expert, trained by its own settings, after its teachers."""
        if (expert, seed) not in self._experts:
            fuser, teacher = self._started(expert.towers, seed), self._teacher(expert, seed)
            trained = self._trained(fuser, expert.training, expert.folder, expert.name, seed, teacher)
            self._experts[expert, seed] = trained.eval()
        return self._experts[expert, seed]

    def _teacher(self, expert: ExpertConfig, seed: int) -> Teacher | None:
        if not expert.teachers:
            return None
        known = {each.name: each for each in self.config.experts}
        if unknown := [name for name in expert.teachers if name not in known]:
            raise ConfigError(f"the teacher {unknown[0]!r} of the expert {expert.name!r} isn't among fusion.experts.")
        members = [self.fit_expert(known[name], seed) for name in expert.teachers]
        # Not the weights, which are sought: their last bits depend on the number of threads.
        weights = [hashlib.sha256(packed_weights(each)).hexdigest() for each in members]
        return Teacher(self.mixture(members), {"members": weights, "criterion": self.config.criterion})

    def _mixture(self, experts: Sequence[ExpertConfig], seed: int) -> Mixture:
        """Experts and all inputs, by the weights that suit the validation items best."""
        return self.mixture([self.fit_expert(each, seed) for each in experts])

    def mixture(self, members: Sequence[Fuser]) -> Mixture:
        """Fusers and all inputs, by `sought_weights`."""
        return Mixture(members, range(len(self.shapes)), self.sought_weights(members), self.shapes)

    def cut(self, fuser: Fuser) -> Fuser:
        """A fuser whose vectors are cut to the configured length, or as it is.

        Raises:
            ConfigError: its vectors are shorter.
        """
        dim = self.config.vector_dim
        return fuser if dim is None else Rotated.fit(fuser, self.train, dim).eval()

    def sought_weights(self, members: Sequence[Fuser]) -> tuple[float, ...]:
        """The weights of some fusers and all inputs that suit the validation items best.

        Those of the inputs alone, the baseline, are always sought by RSum: at their best by what the tables show.
        """
        scores = [*map(self.validation.scores, members), *self.validation.input_scores()]
        return choose_weights(scores, self.validation.caption_image, self.config.criterion if members else "rsum")

    def variant(self, name: str, config: FusionConfig, validation: SplitFeatures) -> Self:
        """Fits of the same features by other settings, chosen on other items, in a folder within this one's."""
        other = copy.copy(self)
        other.config, other.validation, other.folder = config, validation, self.folder / name
        other._fitted, other._experts = {}, {}
        if validation is not self.validation:
            for of_validation in ("regime", "detected_regime"):
                vars(other).pop(of_validation, None)
        return other

    @cached_property
    def regime(self) -> Regime | None:
        """Whether the inputs know the training pairs, as the configuration says or wants it detected."""
        asked = self.config.regime
        return self.detected_regime if asked == "auto" else None if asked is None else Regime(asked)

    @cached_property
    def detected_regime(self) -> Regime:
        """Whether the inputs know the training pairs, by their recall there and on the validation items."""
        found = detect_regime(self.train, self.validation, self.names)
        _log.info(found.sentence())
        return found

    def _hada(self) -> TowerConfig:
        return replace(self.config.towers, weighted_inputs=())

    def _concat(self, hidden: int) -> TowerConfig:
        return replace(
            self.config.towers,
            method="concat-linear",
            hidden=hidden,
            read_embeddings=True,
            read_summaries=False,
            weighted_inputs=(),
        )

    def _hidden(self) -> int:
        with torch.device("meta"):
            parameters = count_parameters(TowerFuser(self._hada(), self.shapes).towers)
        return hidden_of_equal_size(self._concat(0), self.shapes, parameters)

    def _first_stage(self, towers: TowerConfig, name: str, seed: int) -> TowerFuser:
        fuser = self._started(towers, seed)
        if self.pretrained and name == "hada":
            start_from(fuser, self.pretrained)
        return self._stage(fuser, self.config.first_stage, name, 1, seed)

    def _started(self, towers: TowerConfig, seed: int) -> TowerFuser:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return TowerFuser(towers, self.shapes)

    def _both_stages(self, towers: TowerConfig, name: str, seed: int) -> TowerFuser:
        first = self._first_stage(towers, name, seed)
        fuser = first.second_stage(self._weighted_inputs())
        if self.pretrained and name == "hada":
            take_similarity(fuser, self.pretrained)
        return self._weighed(self._stage(fuser, self.config.second_stage, name, 2, seed))

    def _stage(self, fuser: TowerFuser, training: FusionTraining, name: str, stage: int, seed: int) -> TowerFuser:
        return self._trained(fuser, training, f"{name}-stage-{stage}", f"{_LABELS[name]} stage {stage}", seed)

    def _trained(
        self,
        fuser: TowerFuser,
        training: FusionTraining,
        folder: str,
        label: str,
        seed: int,
        teacher: Teacher | None = None,
    ) -> TowerFuser:
        training, label = replace(training, seed=seed), f"{label}, seed {seed}"
        place = self.folder / folder / f"seed-{seed}"
        curve = place.relative_to(self._root).as_posix()
        fit_fuser(fuser, training, self.train, self.validation, place, label, self.tracker, curve, teacher=teacher)
        return fuser

    def _weighed(self, fuser: TowerFuser) -> TowerFuser:
        """The same, or with weights that are sought on the validation items instead of the learned ones."""
        if self.config.weights == "learned":
            return fuser
        inputs, own = self._weighted_inputs(), self.validation.input_scores()
        scores = [self.validation.scores(fuser.second_stage(())), *(own[position] for position in inputs)]
        weighed = fuser.second_stage(inputs)
        weighed.similarity.set_(choose_weights(scores, self.validation.caption_image, self.config.criterion))
        return weighed

    def _weighted_inputs(self) -> tuple[int, ...]:
        if self.config.weighted_inputs == "all":
            return tuple(range(len(self.shapes)))
        if self.config.weighted_inputs != "best":
            return positions_of(self.config.weighted_inputs, self.names)
        rsums = [
            metrics(rank_queries(scores, self.validation.caption_image)).rsum
            for scores in self.validation.input_scores()
        ]
        return (rsums.index(max(rsums)),)
