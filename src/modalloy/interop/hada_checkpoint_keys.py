"""How the weights of HADA's published checkpoints are named, and which of ours they are."""

import re
from collections.abc import Mapping, Set
from pathlib import Path

import torch
from torch import Tensor, nn

from modalloy.encoders import Modality
from modalloy.errors import CheckpointError, ConfigError

MODALITY_KEYS: dict[Modality, str] = {"image": "img_encoder", "text": "cap_encoder"}

TOWER = {
    "enc.gcn.trans_1.linear.0": "project.0.linear",
    "enc.gcn.trans_1.norm.0": "project.0.norm",
    "enc.gcn.trans_2.linear.0": "project.1.linear",
    "enc.gcn.trans_2.norm.0": "project.1.norm",
    "enc.gcn.gcn.conv.0": "graph",
    "enc.gcn.gcn.conv_lin.0.linear.0": "merge.linear",
    "enc.gcn.gcn.conv_lin.0.norm.0": "merge.norm",
    "enc.gcn.gcn.norm.0": "graph_norm",
    "enc.lin.linear.0": "output.linear",
    "enc.lin.norm.0": "output.norm",
}
"""Prefixes of an encoder's keys, and of `OriginalHadaTower`'s."""

B2 = {"enc.linear.0": "output.linear"}
"""The same for the baseline B2 and `ConcatTower`."""

B2_UNUSED = frozenset(f"{part}.norm.0.{name}" for part in ("enc", "disc") for name in ("weight", "bias"))
"""Of the LayerNorms that the baseline's code makes after its last layers and never calls."""

MATCHING = {"disc.linear.0": "linear", "disc.norm.0": "norm"}
"""The same for the matching head."""

_DEEPER = re.compile(r"\.(linear|norm|conv|conv_lin)\.[1-9]\d*\.")


def require_shallow(path: str | Path, entry: str, state: Mapping[str, Tensor]) -> None:
    """Refuses the deeper variants, of which none was published.

    Raises:
        CheckpointError: naming the keys of the second and further layers.
    """
    if deeper := sorted(key for key in state if _DEEPER.search(key)):
        raise CheckpointError(
            f"{path} is a deeper variant, which modalloy can't import: its {entry!r} has {', '.join(deeper)}; "
            "the published setting (C5) has one layer of each kind."
        )


def load_published(
    path: str | Path,
    entry: str,
    state: Mapping[str, Tensor],
    module: nn.Module,
    prefixes: Mapping[str, str],
    unused: Set[str],
) -> list[str]:
    """Fills `module` with the tensors of a published state dict.

    Args:
        path: of the checkpoint, for messages.
        entry: of the checkpoint, for messages.
        state: the published names and tensors.
        module: ours.
        prefixes: of the published names, and of the module's.
        unused: published names that may be there, but that the published code doesn't use.

    Returns:
        Those of them that are there.

    Raises:
        CheckpointError: a name is missing or unknown, or a tensor isn't of finite numbers.
        ConfigError: a tensor has another shape than the encoders ask for.
    """
    wanted = module.state_dict()
    named = {
        theirs + key.removeprefix(ours): key
        for theirs, ours in prefixes.items()
        for key in wanted
        if key.startswith(f"{ours}.")
    }
    missing, unknown = sorted(named.keys() - state.keys()), sorted(state.keys() - named.keys() - unused)
    if missing or unknown:
        raise CheckpointError(
            f"{path}: its {entry!r} isn't the published one: missing are {missing or 'none'}, "
            f"unknown are {unknown or 'none'}."
        )
    for theirs, ours in named.items():
        if state[theirs].shape != wanted[ours].shape:
            raise ConfigError(_mismatch(path, entry, theirs, state[theirs], wanted[ours]))
        if not torch.isfinite(state[theirs]).all():
            raise CheckpointError(f"{path}: {theirs!r} of its {entry!r} holds NaN or infinity; copy it again.")
    module.load_state_dict({ours: state[theirs] for theirs, ours in named.items()})
    return sorted(state.keys() & unused)


def _mismatch(path: str | Path, entry: str, key: str, found: Tensor, wanted: Tensor) -> str:
    modality = next((modality for modality, name in MODALITY_KEYS.items() if name == entry), None)
    where = f"{key!r} of {entry!r} in {path}"
    if found.ndim == wanted.ndim == 2 and found.shape[0] == wanted.shape[0]:
        if match := re.search(r"trans_([12])\.linear", key):
            return (
                f"{where} takes {modality} tokens {found.shape[1]} wide, but encoder {match[1]} of 2 gives "
                f"{wanted.shape[1]}; name the encoders that it was trained on, in its order."
            )
        if key in ("enc.lin.linear.0.weight", "enc.linear.0.weight"):
            extra = found.shape[1] - wanted.shape[1]
            return (
                f"{where} takes embeddings that are {abs(extra)} {'wider' if extra > 0 else 'narrower'} together than "
                "those of the encoders named; name the encoders that it was trained on, in its order."
            )
    return f"{where} should have the shape {tuple(wanted.shape)}, got {tuple(found.shape)}; it isn't the published one."
