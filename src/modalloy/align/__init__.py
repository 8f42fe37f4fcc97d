"""Aligning a frozen image backbone and a frozen text backbone into one dual encoder (HACAN)."""

from modalloy.align.encoder import AlignedEncoder, Backbone
from modalloy.align.heads import GlobalHead, HeadConfig
from modalloy.align.losses import Negatives, f_hn, gcd, hardest_negatives, info_nce, m_hn, same_item

__all__ = [
    "AlignedEncoder",
    "Backbone",
    "GlobalHead",
    "HeadConfig",
    "Negatives",
    "f_hn",
    "gcd",
    "hardest_negatives",
    "info_nce",
    "m_hn",
    "same_item",
]
