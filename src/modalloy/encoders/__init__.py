"""Frozen pretrained models behind one protocol."""

from modalloy.encoders.base import Encoded, Encoder, Fingerprint, Level, Modality
from modalloy.encoders.registry import load_encoder

__all__ = ["Encoded", "Encoder", "Fingerprint", "Level", "Modality", "load_encoder"]
