"""The configuration of a whole run: `modalloy run CONFIG.yaml`."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from modalloy.data.splits import SplitsConfig
from modalloy.encoders.registry import absolute_spec
from modalloy.errors import ConfigError, ModalloyError
from modalloy.files import write_text
from modalloy.fusion.pretrained import pretrained_folder
from modalloy.training.align_config import AlignConfig
from modalloy.training.tracking import TrackingConfig
from modalloy.workflow.collections import DEMO
from modalloy.workflow.experts import expert_systems
from modalloy.workflow.features import ExtractConfig
from modalloy.workflow.fusion_config import SYSTEMS, FusionConfig
from modalloy.workflow.hubs import held_back
from modalloy.workflow.mistakes import mistakes
from modalloy.workflow.stages_config import WEIGHED, StagesConfig

DEMO_CONFIG = Path(__file__).with_name("demo.yaml")


@dataclass(frozen=True)
class InputConfig:
    """One input encoder: a dual encoder, or two backbones to align into one."""

    name: str
    """Its name in every table."""
    encoder: str | None = None
    """Spec of a dual encoder; if given, nothing is aligned."""
    image: str | None = None
    """Spec of the image backbone to align."""
    text: str | None = None
    """Spec of the text backbone to align."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """How the two are aligned."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ConfigError("an input needs a name, got a blank one.")
        to_align = (self.image is not None, self.text is not None)
        if to_align != ((True, True) if self.encoder is None else (False, False)):
            raise ConfigError(
                f"the input {self.name!r} needs either `encoder`, or both `image` and `text` to align; "
                f"got encoder={self.encoder!r}, image={self.image!r}, text={self.text!r}."
            )


@dataclass(frozen=True)
class RunConfig:
    """From a collection to an evaluated alloy."""

    collection: str
    """Path of a collection (see `modalloy doctor`), or "demo"."""
    folder: str
    """The run directory."""
    inputs: tuple[InputConfig, ...]
    """The encoders to fuse, two or more."""
    images: str | None = None
    """Folder of the pictures, where the collection is a file that names them only."""
    hold_back_hubs: bool = False
    """Whether the table also has systems with hubs held back, by a bank of training queries."""
    splits: SplitsConfig = field(default_factory=SplitsConfig)
    """How the collection's splits are drawn anew; by default they stay as they are."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each trained fusion is fitted once per seed."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """How they are fused."""
    extraction: ExtractConfig = field(default_factory=ExtractConfig)
    """How features are extracted."""
    threads: int | None = None
    """Threads of the arithmetic; by default as many as there are idle cores."""
    features: str | None = None
    """Folder of the features, to share it between runs and with `modalloy extract`; by default in the run directory."""
    stages: StagesConfig = WEIGHED
    """How inputs with a local branch are ranked stage by stage, in tables of their own; without a mid level there is no
    cross-layer stage."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where parameters, curves and the report are kept besides; by default nowhere."""

    def __post_init__(self) -> None:
        names = [each.name for each in self.inputs]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(f"a run needs at least 2 inputs of different names, got {names}.")
        self.fusion.check_inputs(names)
        systems = {*SYSTEMS, *expert_systems(self.fusion.experts), *(each.name for each in self.fusion.experts)}
        if (cut := self.fusion.cut_system) is not None:
            systems.add(cut)
        taken = sorted({*names} & {*systems, *map(held_back, systems)})
        if taken:
            raise ConfigError(f"the input name {taken[0]!r} is a fused system's or an expert's; choose another.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"a run needs one or more different seeds of at least 0, got {list(self.seeds)}.")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}; leave it out for a sensible choice.")

    def to_dict(self) -> dict[str, Any]:
        """The whole configuration, defaults included, in plain values."""
        # By way of JSON, which turns tuples into the lists that YAML has.
        return json.loads(json.dumps(asdict(self)))


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Reads a run's configuration from YAML; unknown keys and wrong types are refused.

    Args:
        path: the YAML file.
        overrides: dotted keys and the values that replace the file's.

    Raises:
        ConfigError: the file is missing, isn't YAML, or doesn't describe a run.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RunConfig, "run")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error.strerror}); check the path.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} isn't YAML: {' '.join(str(error).split())}.") from None
    values = _unshared(values)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values, got {type(values).__name__}.")
    for key, value in (overrides or {}).items():
        _set(values, key.split("."), value)
    for key, mistake in mistakes(RunConfig, values):
        overridden = next((each for each in overrides or {} if f"{key}.".startswith(f"{each}.")), None)
        raise ConfigError(f"{path if overridden is None else f'--set {overridden}'}: {mistake}")
    try:
        return parser.instantiate(parser.parse_object({"run": values})).run
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    except ModalloyError as error:
        raise ConfigError(f"{path}: {error}") from None


def features_folder(config: RunConfig) -> Path:
    """Where a run's features are: in its directory, if nowhere else is named."""
    return Path(config.folder) / "features" if config.features is None else Path(config.features)


def save_config(config: RunConfig, path: str | Path) -> None:
    """Writes the whole configuration as YAML that `load_config` reads, from whatever folder it is used again."""
    here = Path.cwd()
    values = config.to_dict()
    for name in ("collection", "images", "features"):
        if values[name] not in (None, DEMO):
            values[name] = str(here / values[name])
    if values["fusion"]["pretrained"] is not None:
        values["fusion"]["pretrained"] = str(here / pretrained_folder(values["fusion"]["pretrained"]))
    if values["tracking"]["folder"] is not None:
        values["tracking"]["folder"] = str(here / values["tracking"]["folder"])
    for each in values["inputs"]:
        for name in ("encoder", "image", "text"):
            each[name] = each[name] and absolute_spec(each[name], here)
    write_text(path, yaml.safe_dump(values, sort_keys=False))


def _unshared(values: Any) -> Any:
    """The same values, but a part that stands in several places by a YAML alias is a copy in each.

    Otherwise an override of one would change them all.
    """
    if isinstance(values, dict):
        return {key: _unshared(value) for key, value in values.items()}
    return [_unshared(value) for value in values] if isinstance(values, list) else values


def _set(values: Any, keys: list[str], value: Any) -> None:
    """Sets the value at a path of keys; in a list a key is a position."""
    whole = ".".join(keys)
    for key in keys[:-1]:
        values = values.setdefault(key, {}) if isinstance(values, dict) else _list_at(values, key, whole)
    if isinstance(values, dict):
        values[keys[-1]] = value
    else:
        _list_at(values, keys[-1], whole)
        values[int(keys[-1])] = value


def _list_at(values: Any, key: str, whole: str) -> Any:
    if not isinstance(values, list):
        raise ConfigError(f"the override {whole!r} goes through a plain value at {key!r}.")
    if not (key.isdecimal() and int(key) < len(values)):
        raise ConfigError(f"the override {whole!r}: {key!r} is no position in a list of {len(values)}.")
    return values[int(key)]
