"""Experts: trained fusers that an alloy mixes with its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from modalloy.errors import ConfigError
from modalloy.fusion import TowerConfig
from modalloy.training.fusion_training import FusionTraining
from modalloy.training.teacher import check_teacher

ALLOY = "alloy"


@dataclass(frozen=True)
class ExpertConfig:
    """One trained fuser beside HADA and the baselines, with settings of its own."""

    name: str
    """What tables call it; the system that mixes it with the inputs is "NAME with the inputs"."""
    towers: TowerConfig = field(default_factory=TowerConfig)
    """Its layers."""
    training: FusionTraining = field(default_factory=FusionTraining)
    """Its training, by the fused similarity alone."""
    in_alloy: bool = True
    """Whether the alloy mixes it; otherwise it is only compared with."""
    teacher: str | None = None
    """Whose similarities are its soft targets, with the share `training.distillation`, in place of its momentum
    encoders': "alloy", which then can't mix it, or the name of an expert that stands before it."""

    def __post_init__(self) -> None:
        if not self.name.strip() or not all(each.isalnum() or each in " -_.+" for each in self.name):
            raise ConfigError(f"an expert needs a name of letters, digits, spaces or -_.+, got {self.name!r}.")
        if self.towers.weighted_inputs or self.training.seed:
            raise ConfigError(
                f"the expert {self.name!r} can't have towers.weighted_inputs or training.seed: the alloy weighs the "
                "inputs, and the run's seeds are used."
            )
        if self.towers.method == "concat-linear":
            defaults = TowerConfig()
            for name in ("graph", "layers", "edges", "token_dropout"):
                if getattr(self.towers, name) != getattr(defaults, name):
                    raise ConfigError(
                        f"the expert {self.name!r} has no graph that towers.{name} could change: its method is "
                        "'concat-linear'; leave it out, or say method: hada."
                    )

        check_teacher(self.training, self.teacher is not None)

    @property
    def system(self) -> str:
        """The name of the system that mixes it with the inputs."""
        return f"{self.name} with the inputs"

    @property
    def folder(self) -> str:
        """The name of the folder of its fits."""
        return "expert-" + self.name.replace(" ", "-")


def expert_systems(experts: Sequence[ExpertConfig]) -> tuple[str, ...]:
    """The systems that experts make: each mixed with the inputs, and the alloy of all that are in it.

    >>> expert_systems([ExpertConfig("linear"), ExpertConfig("B2", in_alloy=False)])
    ('linear with the inputs', 'B2 with the inputs', 'alloy')
    """
    alloy = (ALLOY,) if any(each.in_alloy for each in experts) else ()
    return (*(each.system for each in experts), *alloy)


def check_experts(experts: Sequence[ExpertConfig], systems: Sequence[str]) -> None:
    """Refuses experts that can't be told apart, or that would have to be their teacher's teacher.

    Args:
        experts: the experts.
        systems: what tables show besides them.

    Raises:
        ConfigError: two have the same name, or names that make the same folder; or one has a system's name. A
            teacher is unknown, comes after its pupil, or is an alloy that mixes the pupil or has no expert.
    """
    taken = {*systems, *expert_systems(experts)}
    folders = [each.folder.lower() for each in experts]
    for each in experts:
        if each.name in taken:
            raise ConfigError(f"the expert's name {each.name!r} is a system's; choose another.")
        if folders.count(each.folder.lower()) > 1:
            raise ConfigError(f"two experts are called {each.name!r}, or nearly so; give them different names.")
    _check_teachers(experts)


def _check_teachers(experts: Sequence[ExpertConfig]) -> None:
    of_alloy = {ALLOY}
    for position, each in enumerate(experts):
        known = [ALLOY, *(other.name for other in experts[:position])]
        if each.teacher is not None and each.teacher not in known:
            raise ConfigError(
                f"the teacher of the expert {each.name!r} must be 'alloy' or an expert that stands before it, "
                f"one of {', '.join(known)}; got {each.teacher!r}."
            )
        if each.teacher in of_alloy:
            of_alloy.add(each.name)
            if each.in_alloy:
                raise ConfigError(
                    f"the expert {each.name!r} learns of the alloy, by the teacher {each.teacher!r}, so the alloy "
                    "can't mix it: say in_alloy: false, or name another teacher."
                )
    if len(of_alloy) > 1 and not any(each.in_alloy for each in experts):
        raise ConfigError("an expert's teacher is 'alloy', but no expert is in the alloy; say in_alloy: true of one.")
