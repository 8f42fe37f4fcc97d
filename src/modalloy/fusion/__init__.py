"""From several encoders' features to one retriever: HADA, its baselines, and the alloy that they make."""

from modalloy.fusion.alloy import Alloy
from modalloy.fusion.base import Fuser
from modalloy.fusion.feature_set import FeatureSet, input_shapes
from modalloy.fusion.inputs import EncoderFeatures, InputShape
from modalloy.fusion.mixture import Mixture
from modalloy.fusion.paired_features import PairedFeatures, SplitFeatures
from modalloy.fusion.rotation import Rotated, principal_rotation, truncate
from modalloy.fusion.score_fusion import ScoreFusion
from modalloy.fusion.simplex import choose_weights
from modalloy.fusion.towers import TowerConfig, TowerFuser, count_parameters, hidden_of_equal_size

__all__ = [
    "Alloy",
    "EncoderFeatures",
    "FeatureSet",
    "Fuser",
    "InputShape",
    "Mixture",
    "PairedFeatures",
    "Rotated",
    "ScoreFusion",
    "SplitFeatures",
    "TowerConfig",
    "TowerFuser",
    "choose_weights",
    "count_parameters",
    "hidden_of_equal_size",
    "input_shapes",
    "principal_rotation",
    "truncate",
]
