"""What features depend on besides the items, in few words and checksums."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from modalloy.errors import FeatureError
from modalloy.files import sha256_of_text


@dataclass(frozen=True)
class Fingerprint:
    """What features depend on besides the items: stored with them, and compared before they are used.

    >>> made = Fingerprint("MiniLM", "0.1.0", "a" * 64, "b" * 64)
    >>> Fingerprint.from_dict(made.to_dict()) == made
    True
    """

    name: str
    """The encoder's spec and modality, for people."""
    revision: str
    """Version of the package, or revision of the model, that the weights come from."""
    weights_sha256: str
    """SHA-256 of the weight file's bytes."""
    preprocessing_sha256: str
    """SHA-256 of everything else that changes the numbers: see `sha256_of_settings`."""

    @property
    def digest(self) -> str:
        """One SHA-256 over all fields."""
        return sha256_of_settings(self.to_dict())

    def to_dict(self) -> dict[str, str]:
        """The fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds a fingerprint from what `to_dict` gave.

        Raises:
            FeatureError: a field is missing, unknown or no text.
        """
        expected = {field.name for field in fields(cls)}
        if set(values) != expected or not all(isinstance(value, str) for value in values.values()):
            raise FeatureError(
                f"A fingerprint must hold the texts {', '.join(sorted(expected))}, got {dict(values)!r}; "
                "the features are damaged or not modalloy's: extract them again."
            )
        return cls(**values)


def sha256_of_settings(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings as canonical JSON (sorted keys, no spaces), so that equal settings hash equally.

    >>> sha256_of_settings({"a": 1, "b": 2}) == sha256_of_settings({"b": 2, "a": 1})
    True
    """
    return sha256_of_text(json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False))
