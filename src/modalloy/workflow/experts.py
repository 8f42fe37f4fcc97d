"""Experts: trained fusers that an alloy mixes with its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from modalloy.errors import ConfigError
from modalloy.fusion import TowerConfig
from modalloy.training.fusion_training import FusionTraining
from modalloy.training.teacher import check_teacher
from modalloy.training.whole_batches import check_whole_batches

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
    teachers: tuple[str, ...] = ()
    """Names of experts that stand before it, whose mixture with the inputs teaches it: its similarities are the soft
    targets, with the share `training.distillation`, in place of the momentum encoders'."""

    def __post_init__(self) -> None:
        if not self.name.strip() or not all(each.isalnum() or each in " -_.+" for each in self.name):
            raise ConfigError(f"an expert needs a name of letters, digits, spaces or -_.+, got {self.name!r}.")
        if self.towers.weighted_inputs or self.training.seed:
            raise ConfigError(
                f"the expert {self.name!r} can't have towers.weighted_inputs or training.seed: the alloy weighs the "
                "inputs, and the run's seeds are used."
            )
        check_whole_batches(self.towers, self.training, f"the expert {self.name!r}: training")
        if self.towers.method == "concat-linear":
            defaults = TowerConfig()
            for name in ("graph", "layers", "edges", "token_dropout"):
                if getattr(self.towers, name) != getattr(defaults, name):
                    raise ConfigError(
                        f"the expert {self.name!r} has no graph that towers.{name} could change: its method is "
                        "'concat-linear'; leave it out, or say method: hada."
                    )
        check_teacher(self.training, bool(self.teachers), f"the expert {self.name!r}: training")

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
    """Refuses experts that can't be told apart, and teachers that don't stand before their pupil.

    Args:
        experts: the experts.
        systems: what tables show besides them.

    Raises:
        ConfigError: two have the same name, or names that make the same folder; one has a system's name; or a teacher
            is unknown, named twice, or doesn't stand before its pupil.
    """
    taken = {*systems, *expert_systems(experts)}
    folders = [each.folder.lower() for each in experts]
    for each in experts:
        if each.name in taken:
            raise ConfigError(f"the expert's name {each.name!r} is a system's; choose another.")
        if folders.count(each.folder.lower()) > 1:
            raise ConfigError(f"two experts are called {each.name!r}, or nearly so; give them different names.")
    for position, each in enumerate(experts):
        known = [other.name for other in experts[:position]]
        if not {*each.teachers} <= {*known} or len(set(each.teachers)) < len(each.teachers):
            raise ConfigError(
                f"the teachers of the expert {each.name!r} must be different experts that stand before it "
                f"({', '.join(known) or 'there is none'}), got {', '.join(each.teachers)}."
            )
