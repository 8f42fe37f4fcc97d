"""Aligning an image backbone and a text backbone into one dual encoder (HACAN)."""

from modalloy.align.attention_map import AttentionMaps, attention_maps
from modalloy.align.backbone import Backbone
from modalloy.align.cross_attention import CrossAttention
from modalloy.align.cross_layer import (
    LocalBranch,
    LocalConfig,
    candidate_cross_layer_similarity,
    compared_levels,
    compared_packed,
    cross_layer_similarity,
)
from modalloy.align.encoder import AlignedEncoder
from modalloy.align.heads import GlobalHead, HeadConfig
from modalloy.align.local_level import LocalLevel
from modalloy.align.local_losses import hacan_loss, local_hinge
from modalloy.align.local_similarity import Tokens, candidate_similarity, local_similarity
from modalloy.align.losses import Negatives, f_hn, gcd, hardest_negatives, info_nce, m_hn, same_item

__all__ = [
    "AlignedEncoder",
    "AttentionMaps",
    "Backbone",
    "CrossAttention",
    "GlobalHead",
    "HeadConfig",
    "LocalBranch",
    "LocalConfig",
    "LocalLevel",
    "Negatives",
    "Tokens",
    "attention_maps",
    "candidate_cross_layer_similarity",
    "candidate_similarity",
    "compared_levels",
    "compared_packed",
    "cross_layer_similarity",
    "f_hn",
    "gcd",
    "hacan_loss",
    "hardest_negatives",
    "info_nce",
    "local_hinge",
    "local_similarity",
    "m_hn",
    "same_item",
]
