"""How an index names the encoder that made it, so that a run moves as a whole."""

from pathlib import Path

from modalloy.encoders.registry import absolute_spec, relative_spec
from modalloy.index.lock import is_uri


def spec_from(spec: str, location: str | Path) -> str:
    """What an index's head says of an encoder: one that lies in a folder is named from the index's folder.

    >>> spec_from("minilm", "runs/demo/index")
    'minilm'
    """
    return spec if is_uri(str(location)) else relative_spec(spec, Path(location).resolve())


def spec_at(spec: str, location: str | Path) -> str:
    """Undoes `spec_from`, wherever the index is now; what `load_encoder` takes.

    >>> spec_at("minilm", "runs/demo/index")
    'minilm'
    """
    return spec if is_uri(str(location)) else absolute_spec(spec, Path(location).resolve())
