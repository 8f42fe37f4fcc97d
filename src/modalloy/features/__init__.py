"""Stored features: extracted once, then read by everything that trains or evaluates."""

from modalloy.features.combine import combine
from modalloy.features.derive import derive
from modalloy.features.derive_tokens import derive_tokens
from modalloy.features.extract import extract
from modalloy.features.padding import pad
from modalloy.features.store import FeatureStore

__all__ = ["FeatureStore", "combine", "derive", "derive_tokens", "extract", "pad"]
