"""The baseline B2: fusion of the inputs' embeddings without their tokens (arXiv 2301.04742, section 4.3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from modalloy.fusion.inputs import EncoderFeatures, unit_summaries
from modalloy.fusion.output import FusedOutput


class ConcatTower(nn.Module):
    """Maps the concatenated embeddings of N encoders to one unit-norm vector (HADA's baseline B2).

    With `hidden` units a two-layer perceptron reads the embeddings too, and its result enters the last layer as
    HADA's updated tokens do: this makes a baseline with as many parameters as HADA, but no tokens.

    Args:
        dims: the encoders' embedding widths.
        output_dim: width of the fused vector.
        dropout: probability in the linear layers.
        start: see `FusedOutput`.
        hidden: width of the perceptron's hidden layer and result; 0 for the linear layer alone.
        summary_widths: widths of the encoders' summary tokens, if the last layer reads them too.
        read_embeddings: whether it reads the embeddings.
    """

    def __init__(
        self,
        dims: Sequence[int],
        output_dim: int,
        dropout: float,
        start: str,
        hidden: int = 0,
        summary_widths: Sequence[int] = (),
        read_embeddings: bool = True,
    ) -> None:
        super().__init__()
        self.perceptron = (
            nn.Sequential(nn.Linear(sum(dims), hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, hidden))
            if hidden
            else None
        )
        self.read_summaries = bool(summary_widths)
        self.read_embeddings = read_embeddings
        read = dims if read_embeddings else []
        self.output = FusedOutput(read, hidden + sum(summary_widths), output_dim, dropout, start)

    def forward(self, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch output"]:
        """Fuses a batch."""
        embeddings = [features.known_embedding for features in inputs]
        learned = unit_summaries(inputs) if self.read_summaries else []
        if self.perceptron is not None:
            learned = [self.perceptron(torch.cat(embeddings, dim=-1)), *learned]
        read = embeddings if self.read_embeddings else []
        return self.output(read, torch.cat(learned, dim=-1) if learned else None)
