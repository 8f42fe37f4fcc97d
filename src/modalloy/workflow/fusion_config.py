"""The configuration of a fusion, and the systems that it may be."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self, get_args

from modalloy.errors import ConfigError
from modalloy.fusion import TowerConfig
from modalloy.fusion.simplex import Criterion
from modalloy.training.fusion_training import FusionTraining
from modalloy.training.teacher import check_teacher
from modalloy.training.whole_batches import check_whole_batches
from modalloy.workflow.experts import ALLOY, ExpertConfig, check_experts, expert_systems
from modalloy.workflow.weighted_inputs import positions_of

Method = Literal[
    "mean of cosines",
    "validation-tuned weighted cosine",
    "B2 (concat-linear)",
    "B2 (as many parameters as HADA)",
    "HADA stage 1",
    "HADA stage 2",
]
METHODS: tuple[Method, ...] = get_args(Method)
MEAN, TUNED = UNTRAINED = METHODS[:2]
NEVER_PRETRAINED = METHODS[:4]

RANK_AVERAGE = "B1 (rank average)"
# All that the results table compares besides the inputs.
SYSTEMS: tuple[str, ...] = (*METHODS, RANK_AVERAGE)

# Short names for the command line and for folders.
SHORT_NAMES: dict[str, Method] = dict(
    zip(("mean", "tuned", "concat-linear", "concat-wide", "hada-1", "hada"), METHODS, strict=True)
)

# The trainings that a method is made of: their folder's name, and the last stage.
_STAGES: dict[Method, tuple[str, int]] = {
    "B2 (concat-linear)": ("concat-linear", 2),
    "B2 (as many parameters as HADA)": ("concat-wide", 2),
    "HADA stage 1": ("hada", 1),
    "HADA stage 2": ("hada", 2),
}


@dataclass(frozen=True)
class FusionConfig:
    """How a fusion is built and trained."""

    towers: TowerConfig = field(default_factory=TowerConfig)
    """The layers of HADA; the baselines B2 take their width, dropout and start from it."""
    first_stage: FusionTraining = field(default_factory=FusionTraining)
    """Training by the fused similarity alone."""
    second_stage: FusionTraining = field(default_factory=FusionTraining)
    """Further training, by the similarity that also weighs input encoders."""
    weighted_inputs: Literal["best", "all"] | tuple[str | int, ...] = "best"
    """Which inputs enter the weighted similarity: the best by validation RSum, as in the paper; all; or a list of
    their names (of `modalloy fuse`: their specs) or positions from 0."""
    weights: Literal["learned", "tuned"] = "learned"
    """The weighted similarity's weights: learned in the second stage, or sought on the validation items after either
    stage's training, of the fused similarity and the weighted inputs'."""
    criterion: Criterion = "rsum"
    """What weights are sought by: validation RSum, or the contrastive loss, which suits few validation pairs. The
    validation-tuned cosine's are sought by RSum in any case."""
    methods: tuple[Method, ...] = METHODS
    """Which of HADA and the baselines a run fits and compares."""
    experts: tuple[ExpertConfig, ...] = ()
    """Further trained fusers; each is compared when mixed with the inputs, and all together make the alloy."""
    regime: Literal["auto", "shared", "foreign"] | None = None
    """Whether the inputs were fitted on the training pairs (shared) or not (foreign), or auto, to detect it."""
    vector_dim: int | None = None
    """Length to which the alloy's retrieval vectors are cut, after a rotation fitted on the training vectors that puts
    what matters most first; by default they stay whole."""
    pretrained: str | None = None
    """Folder of an alloy fitted elsewhere on the same encoders, from whose weights HADA starts, in place of
    `towers.start`; the baselines don't."""

    def __post_init__(self) -> None:
        if isinstance(self.weighted_inputs, str) and self.weighted_inputs not in ("best", "all"):
            raise ConfigError(
                f"weighted_inputs must be 'best', 'all', or a list of names or positions, got {self.weighted_inputs!r}."
            )
        if not self.weighted_inputs:
            raise ConfigError("weighted_inputs must name one input or more, got none.")
        if self.weights not in ("learned", "tuned"):
            raise ConfigError(f"weights must be 'learned' or 'tuned', got {self.weights!r}.")
        if self.criterion not in get_args(Criterion):
            raise ConfigError(f"criterion must be 'rsum' or 'contrast', got {self.criterion!r}.")
        if self.vector_dim is not None and self.vector_dim < 1:
            raise ConfigError(
                f"fusion.vector_dim must be at least 1, got {self.vector_dim}; leave it out for whole vectors."
            )
        if self.regime not in (None, "auto", "shared", "foreign"):
            raise ConfigError(f"regime must be 'auto', 'shared', 'foreign' or left out, got {self.regime!r}.")
        check_experts(self.experts, SYSTEMS)
        self._check_methods()
        self._check_stages()
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

    def _check_methods(self) -> None:
        unknown = [each for each in self.methods if each not in METHODS]
        if unknown or len(set(self.methods)) < len(self.methods):
            raise ConfigError(f"methods must be different ones of {', '.join(METHODS)}, got {list(self.methods)}.")
        if self.pretrained is not None and {*self.methods} <= {*NEVER_PRETRAINED}:
            raise ConfigError("pretrained starts HADA, which isn't among methods; leave it out, or add HADA.")
        missing = {*UNTRAINED, *([self.delivered] if self.delivered in METHODS else [])} - {*self.methods}
        if missing:
            raise ConfigError(f"methods must hold {sorted(missing)[0]!r}, which every table needs; add it.")

    def _check_stages(self) -> None:
        for name in ("first_stage", "second_stage"):
            check_teacher(getattr(self, name), taught=False, name=f"fusion.{name}")
        # The baselines have no BatchNorm.
        if not {*self.methods} <= {*NEVER_PRETRAINED}:
            check_whole_batches(self.towers, self.first_stage, "fusion.first_stage")
        if "HADA stage 2" in self.methods:
            check_whole_batches(self.towers, self.second_stage, "fusion.second_stage")

    def check_method(self, method: str) -> None:
        """Refuses a method that isn't known, or an alloy of no experts.

        Raises:
            ConfigError: it is one of these.
        """
        if method == ALLOY and ALLOY not in expert_systems(self.experts):
            raise ConfigError(
                "method 'alloy' mixes the experts of fusion.experts, but none is in the alloy; give one or more, or "
                "choose another method (docs/fusion.md)."
            )
        known = (*METHODS, *(each.name for each in self.experts), *expert_systems(self.experts))
        if method not in known:
            raise ConfigError(
                f"unknown method {method!r}; choose one of {', '.join(known)} (of modalloy fuse also "
                f"{', '.join(SHORT_NAMES)}, auto)."
            )

    @property
    def delivered(self) -> str:
        """The system that a run is searched with: the alloy if there is one, else HADA."""
        return ALLOY if any(each.in_alloy for each in self.experts) else "HADA stage 2"

    @property
    def cut_system(self) -> str | None:
        """What is delivered, with its vectors cut; None where they stay whole.

        >>> FusionConfig(vector_dim=128).cut_system
        'HADA stage 2, 128 numbers'
        """
        return None if self.vector_dim is None else f"{self.delivered}, {self.vector_dim} numbers"

    @property
    def trainings(self) -> tuple[str, ...]:
        """The folders of the trainings that the methods and the experts are made of.

        >>> FusionConfig(methods=("mean of cosines", "validation-tuned weighted cosine", "HADA stage 2")).trainings
        ('hada-stage-1', 'hada-stage-2')
        """
        stages = [_STAGES[method] for method in self.methods if method in _STAGES]
        methods = [f"{name}-stage-{stage}" for name, last in stages for stage in range(1, last + 1)]
        return tuple(dict.fromkeys([*methods, *(each.folder for each in self.experts)]))

    def check_inputs(self, names: Sequence[str]) -> None:
        """Refuses encoders that can't be fused, before anything is extracted.

        Args:
            names: of the encoders.

        Raises:
            ConfigError: fewer than two encoders, other than two for "hada-original", or weighted inputs that aren't
                among them.
        """
        count = len(names)
        if count < 2:
            raise ConfigError(f"a fusion takes at least 2 encoders, got {count}.")
        if self.towers.method == "hada-original" and count != 2:
            raise ConfigError(
                f"fusion.towers.method 'hada-original' fuses two encoders, got {count}; method 'hada' takes more."
            )
        if not isinstance(self.weighted_inputs, str):
            positions_of(self.weighted_inputs, names)

    def check_lengths(self, width: int) -> None:
        """Refuses lengths to cut vectors to that no vector has, before anything is fitted.

        Args:
            width: of the inputs' embeddings together, which fused vectors have by default.

        Raises:
            ConfigError: `vector_dim` is longer than any alloy's vectors; or see `FusionTraining.check_prefixes`.
        """
        trained = {f"fusion.{name}": (self.towers, getattr(self, name)) for name in ("first_stage", "second_stage")}
        trained |= {f"the expert {each.name!r}: training": (each.towers, each.training) for each in self.experts}
        for name, (towers, training) in trained.items():
            training.check_prefixes(towers.output_dim or width, name)
        mixed = [each.towers for each in self.experts if each.in_alloy]
        longest = width + max(self.towers.output_dim or width, sum((towers.output_dim or width) for towers in mixed))
        if self.vector_dim is not None and self.vector_dim > longest:
            raise ConfigError(
                f"fusion.vector_dim={self.vector_dim} is longer than the alloy's vectors, which have at most {longest} "
                "numbers; make it shorter, or leave it out."
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
