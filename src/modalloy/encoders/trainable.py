"""What the encoders of one modality whose network can be trained further have in common."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from modalloy.encoders.base import Encoded, Encoder, Level, Modality


class TrainableEncoder(Encoder):
    """An encoder of one modality and one network; a subclass says in `_levels` how the network is run."""

    @abstractmethod
    def _levels(self, prepared: Sequence[Any], levels: Collection[Level]) -> dict[Level, Encoded]:
        """Runs the network once, for levels that all exist."""

    def network(self, modality: Modality) -> nn.Module:
        """The network whose parameters make the features, to be trained on."""
        self._require(modality)
        (network,) = (part for part in self._parts() if isinstance(part, nn.Module))
        return network

    def forward_levels(
        self, modality: Modality, prepared: Sequence[Any], levels: Collection[Level]
    ) -> dict[Level, Encoded]:
        """Runs the network once, for the levels asked for, with gradients where they are enabled."""
        self._require(modality)
        if "mid" in levels and self.mid_layer(modality) is None:
            super().forward_mid(modality, prepared)  # refuses
        return self._levels(prepared, levels)

    @torch.no_grad()
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> Encoded:
        """Runs the network on a batch, without gradients."""
        return self.forward_levels(modality, prepared, ["high"])["high"]

    @torch.no_grad()
    def forward_mid(self, modality: Modality, prepared: Sequence[Any]) -> Encoded:
        """Runs the network on a batch for the tokens of `mid_layer`, without gradients."""
        return self.forward_levels(modality, prepared, ["mid"])["mid"]
