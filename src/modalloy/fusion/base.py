"""The seam of fusion: from N encoders' features to one retrieval vector per item."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from modalloy.encoders import Modality
from modalloy.fusion.feature_set import FeatureSet
from modalloy.fusion.inputs import EncoderFeatures, InputShape


class Fuser(nn.Module, ABC):
    """Fuses N encoders' features of an item into one unit-norm retrieval vector."""

    shapes: tuple[InputShape, ...]
    """The widths of the input encoders, in the order in which their features come."""

    @property
    @abstractmethod
    def tokens_read(self) -> int | None:
        """How many of each item's tokens it looks at, from the summary token on; None for all, 0 for none."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of the retrieval vector."""

    def parts(self) -> dict[str, tuple[slice, ...]] | None:
        """Where in the retrieval vector each similarity that it adds up stands; None where it can't be taken apart.

        The parts are "fused", or "fused 0", "fused 1", ... of several fusers, and "input 0", "input 1", ... for the
        own similarity of those inputs that have a weight. Together they cover the vector, so that the inner products
        over them add up to the similarity.
        """
        return None

    @abstractmethod
    def embed(self, modality: Modality, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch dim"]:
        """The retrieval vectors of a batch, whose inner products are the similarities.

        Raises:
            ConfigError: the inputs don't fit the encoders that the fuser was made for.
        """

    @torch.no_grad()
    def embed_rows(
        self, features: FeatureSet, rows: Int[Tensor, " items"], batch_size: int = 256
    ) -> Float[Tensor, "items dim"]:
        """The retrieval vectors of stored items, in batches and without dropout; on the CPU, as the features are."""
        training = self.training
        # A training may have moved the layers to an accelerator.
        device = next(chain(self.parameters(), self.buffers())).device
        self.eval()
        try:
            parts = [
                self.embed(features.modality, [each.to(device) for each in batch]).cpu()
                for batch in features.batches(rows, batch_size, tokens=self.tokens_read)
            ]
        finally:
            self.train(training)
        return torch.cat(parts) if parts else torch.empty(0, self.dim)
