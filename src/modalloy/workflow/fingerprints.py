"""Which data and which weights a fusion is made of, for a tracker."""

from collections.abc import Mapping
from typing import Any

from modalloy.data import Manifest
from modalloy.encoders import Encoder


def fingerprints(manifest: Manifest, encoders: Mapping[str, Encoder]) -> dict[str, Any]:
    """The SHA-256 of the collection, and of each encoder in each modality by its name."""
    return {
        "collection": manifest.fingerprint,
        "encoders": {
            name: {modality: encoder.fingerprint(modality).digest for modality in encoder.modalities}
            for name, encoder in encoders.items()
        },
    }
