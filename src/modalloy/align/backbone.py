"""The record of a frozen model that something was trained on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from modalloy.encoders import Encoder, Fingerprint, Modality
from modalloy.encoders.registry import absolute_spec, relative_spec


@dataclass(frozen=True)
class Backbone:
    """Which encoder a head or a local branch was trained on, known without loading it."""

    spec: str
    """What `load_encoder` takes."""
    fingerprint: Fingerprint
    """Of the weights and preprocessing that it was trained on."""
    width: int
    """Length of its tokens."""

    @classmethod
    def of(cls, encoder: Encoder, modality: Modality) -> Self:
        """The record of an encoder."""
        return cls(encoder.spec, encoder.fingerprint(modality), encoder.width(modality))

    def to_dict(self, folder: Path) -> dict[str, Any]:
        """Ready for JSON in `folder`, with which a backbone inside it can be moved."""
        return {**asdict(self), "spec": relative_spec(self.spec, folder)}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], folder: Path) -> Self:
        """Undoes `to_dict`."""
        fingerprint = Fingerprint.from_dict(recorded["fingerprint"])
        return cls(absolute_spec(recorded["spec"], folder), fingerprint, recorded["width"])
