"""Reads a Lightning checkpoint's tensors without running anything that may be in the file."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from modalloy.errors import CheckpointError, one_line


def read_lightning_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The tensors of `state_dict` and, where they are, the `hyper_parameters`; the optimiser's stay on the disk.

    Lightning's own classes, by which old versions key the state of their callbacks, are read as empty dictionary
    types, without Lightning. Objects of any other class are refused.

    Args:
        path: a file of Lightning, or of `torch.save` with a `state_dict`.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or has no `state_dict` of tensors.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "last.ckpt"
    >>> torch.save({"state_dict": {"weight": torch.eye(2)}, "epoch": 3}, file)
    >>> read_lightning_checkpoint(file)
    ({'weight': tensor([[1., 0.],
            [0., 1.]])}, {})
    """
    path = Path(path)
    loaded = _load(path)
    state = loaded.get("state_dict") if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        got = some(sorted(map(str, loaded))) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise CheckpointError(f"{path} should hold a `state_dict`, as Lightning's checkpoints do; it holds {got}.")
    wrong = [str(name) for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(f"{path}: the `state_dict` should hold tensors by name, but {some(wrong)} isn't one.")
    hyper_parameters = loaded.get("hyper_parameters", {})
    return dict(state), hyper_parameters if isinstance(hyper_parameters, Mapping) else {}


def some(names: Sequence[str]) -> str:
    """The first names of a list that may be long, for a message.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _load(path: Path) -> Any:
    refused: list[str] = []
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        lightnings = [name for name in named if name.startswith(("pytorch_lightning.", "lightning."))]
        refused = sorted(set(named) - set(lightnings))
        with torch.serialization.safe_globals([(OrderedDict, name) for name in lightnings]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror}); check the path.") from None
    except UnpicklingError as error:
        what = f"objects of {some(refused)}" if refused else one_line(error)
        raise CheckpointError(
            f"{path} holds more than numbers, and reading that could run code ({what}). If you trust it, keep its "
            "tensors alone: python -c \"import torch; kept = torch.load('IN', map_location='cpu', "
            "weights_only=False)['state_dict']; torch.save({'state_dict': kept}, 'OUT')\" and import OUT."
        ) from None
    # Damaged files make torch raise nearly anything.
    except Exception:
        raise CheckpointError(f"{path} isn't a PyTorch checkpoint, or is damaged; copy it again.") from None
