"""The last layer of a fused encoder, which starts as the identity on its inputs' embeddings."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from modalloy.errors import ConfigError

SMALL_WEIGHT = 1e-3


class FusedOutput(nn.Module):
    """Linear layer from the inputs' embeddings, and what was learned beside them, to one unit-norm vector.

    With `start="identity"` the layer passes the concatenated embeddings through, plus a small random rest for the
    learned part: two such vectors' inner product is then the mean of the inputs' cosines, so that training starts
    from score averaging. From `start="random"` a fusion trained on few pairs falls behind that untrained average.
    The paper doesn't state its start; its code's is random.

    Args:
        dims: widths of the inputs' unit-norm embeddings.
        learned_dim: width of the learned part, 0 for none.
        output_dim: width of the result; the identity needs at least `sum(dims)`.
        dropout: probability on what the layer reads.
        start: "identity" or "random".
    """

    def __init__(self, dims: Sequence[int], learned_dim: int, output_dim: int, dropout: float, start: str) -> None:
        super().__init__()
        total = sum(dims)
        if start == "identity" and output_dim < total:
            raise ConfigError(
                f"start='identity' needs an output at least as wide as the inputs' embeddings together ({total}), "
                f"got {output_dim}; widen it, or say start='random'."
            )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(total + learned_dim, output_dim)
        if start == "identity":
            with torch.no_grad():
                self.linear.weight.normal_(std=SMALL_WEIGHT)
                self.linear.weight[:, :total] = torch.eye(output_dim, total)
                self.linear.bias.zero_()

    def forward(
        self,
        embeddings: Sequence[Float[Tensor, "batch _"]],
        learned: Float[Tensor, "batch learned"] | None = None,
    ) -> Float[Tensor, "batch output"]:
        """Maps a batch of embeddings, and the learned part if there is one, to unit-norm vectors."""
        parts = [*embeddings] if learned is None else [*embeddings, learned]
        return F.normalize(self.linear(self.dropout(torch.cat(parts, dim=-1))), dim=-1)
