"""What of a training a BatchNorm rules out, since it makes an item's vector depend on the rest of its batch."""

from modalloy.errors import ConfigError
from modalloy.fusion.towers import TowerConfig
from modalloy.training.fusion_training import FusionTraining


def check_whole_batches(towers: TowerConfig, training: FusionTraining, name: str = "training") -> None:
    """Refuses a training that would show a BatchNorm parts of batches.

    Args:
        towers: what is trained.
        training: how.
        name: by which the message calls the training.

    Raises:
        ConfigError: the fusion has BatchNorm, and its batches are encoded in chunks or by several processes.

    >>> check_whole_batches(TowerConfig(), FusionTraining(chunk_size=4, devices=2))
    """
    if not towers.batch_norm:
        return
    for setting, value, whole in (("chunk_size", training.chunk_size, None), ("devices", training.devices, 1)):
        if value != whole:
            mend = "leave chunk_size out" if whole is None else "set devices to 1"
            raise ConfigError(
                f"{name}.{setting}={value} would change what a BatchNorm sees, which learns its statistics of whole "
                f"batches: {mend}, or train a fusion without BatchNorm (original.norm)."
            )
