"""Which encoder made an index, and how the index names it, so that a run moves as a whole."""

from pathlib import Path

from modalloy.encoders import Encoder
from modalloy.encoders.base import MODALITIES
from modalloy.encoders.registry import absolute_spec, relative_spec
from modalloy.errors import ConfigError
from modalloy.index.base import Head
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


def head_of(encoder: Encoder, location: str | Path | None = None) -> Head:
    """What an empty index of an encoder's vectors says of itself.

    Args:
        encoder: of pictures and texts.
        location: of the index; without one the encoder is named as it names itself.

    Raises:
        ConfigError: the encoder doesn't embed pictures and texts in one space.
    """
    missing = [modality for modality in MODALITIES if modality not in encoder.modalities]
    if missing:
        raise ConfigError(
            f"{encoder.spec} encodes no {missing[0]}s, so it can't fill an index; choose a dual encoder, such as an "
            "alloy (modalloy fuse)."
        )
    if encoder.dim("image") != encoder.dim("text"):
        raise ConfigError(f"{encoder.spec} embeds pictures and texts in spaces of their own; choose a dual encoder.")
    spec = encoder.spec if location is None else spec_from(encoder.spec, location)
    return Head(spec, {m: encoder.fingerprint(m) for m in MODALITIES}, encoder.dim("image"))


def made_by(head: Head, encoder: Encoder) -> bool:
    """Whether an index's vectors are the encoder's."""
    return dict(head.fingerprints) == {modality: encoder.fingerprint(modality) for modality in encoder.modalities}
