"""Frozen pretrained models behind one protocol."""

from modalloy.encoders.base import Encoded, Encoder, Fingerprint, Modality
from modalloy.encoders.registry import load_encoder

__all__ = ["Encoded", "Encoder", "Fingerprint", "Modality", "load_encoder"]
