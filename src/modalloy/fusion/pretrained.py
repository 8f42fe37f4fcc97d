"""A fuser's start from one that was fitted elsewhere: pretraining on one collection, fine-tuning on another."""

from collections.abc import Sequence
from pathlib import Path

from modalloy.encoders import Encoder
from modalloy.encoders.base import sha256_of_settings
from modalloy.encoders.checkpoint import read_config
from modalloy.errors import ConfigError
from modalloy.fusion.alloy import FORMAT, MAKER, saved_fuser
from modalloy.fusion.rotation import uncut
from modalloy.fusion.towers import TowerConfig, TowerFuser

# Of a configuration, what leaves the layers as they are: the start is replaced, and dropout has no weights. The inputs
# that the similarity weighs are the second stage's own.
_FREE = ("start", "dropout", "token_dropout", "encoder_dropout", "weighted_inputs", "output_dim")


def pretrained_folder(spec: str) -> Path:
    """The folder of an alloy that is named by it or by its spec.

    >>> pretrained_folder("alloy:runs/x") == pretrained_folder("runs/x") == Path("runs/x")
    True
    """
    return Path(spec.removeprefix("alloy:"))


def pretrained_digest(spec: str) -> str:
    """SHA-256 of what a fuser takes over from an alloy, wherever that lies.

    Raises:
        CheckpointError: there is no alloy.
    """
    config = read_config(pretrained_folder(spec), FORMAT, MAKER)
    return sha256_of_settings({key: config.get(key) for key in ("weights_sha256", "fuser")})


def pretrained_fuser(spec: str, encoders: Sequence[Encoder], towers: TowerConfig) -> TowerFuser:
    """The fuser of an alloy, to start another one of the same layers from.

    Args:
        spec: the alloy's folder, or its spec.
        encoders: those of the new fusion, which must be the alloy's.
        towers: the new fuser's layers.

    Raises:
        CheckpointError: there is no alloy, or it is damaged.
        ConfigError: it was fitted on other encoders, isn't made of towers, or has other layers.
    """
    # Where its vectors were cut its layers are whole.
    fuser = uncut(saved_fuser(pretrained_folder(spec), encoders))
    if not isinstance(fuser, TowerFuser):
        raise ConfigError(
            f"{spec} has no trained towers to start from ({type(fuser).__name__}); name an alloy of HADA."
        )
    wanted, found = towers.to_dict(), fuser.config.to_dict()
    width = sum(shape.dim for shape in fuser.shapes)
    differing = {
        name: (wanted.get(name), found.get(name))
        for name in wanted | found
        if name not in _FREE and wanted.get(name) != found.get(name)
    }
    if (towers.output_dim or width) != fuser.fused_dim:
        differing["output_dim"] = (towers.output_dim or width, fuser.fused_dim)
    for name, (mine, its) in differing.items():
        raise ConfigError(
            f"fusion.towers.{name} is {mine!r}, but {its!r} in the pretrained {spec}; set it to that, "
            "or start from another alloy."
        )
    return fuser


def start_from(fuser: TowerFuser, pretrained: TowerFuser) -> None:
    """Gives a fuser the layers' weights of another one of the same layers."""
    fuser.towers.load_state_dict(pretrained.towers.state_dict())
    fuser.matching.load_state_dict(pretrained.matching.state_dict())


def take_similarity(fuser: TowerFuser, pretrained: TowerFuser) -> None:
    """Gives a fuser another one's weights of the similarity, if both weigh the same inputs."""
    if fuser.config.weighted_inputs == pretrained.config.weighted_inputs:
        fuser.similarity.load_state_dict(pretrained.similarity.state_dict())
