"""What hierarchical search goes through: an encoder's images and captions, as vectors and as tokens."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from modalloy.align import LocalConfig
from modalloy.errors import DataError
from modalloy.search.token_source import TokenSource


@dataclass(frozen=True, eq=False)
class Side:
    """All images, or all captions.

    Raises:
        DataError: there isn't one vector for each item's tokens.
    """

    vectors: Float[Tensor, "items dim"]
    """Global vectors; a row that isn't finite stands for an item without one, which is never found."""
    tokens: TokenSource
    """Their tokens, in the same order."""

    def __post_init__(self) -> None:
        if len(self.vectors) != len(self.tokens):
            raise DataError(f"got {len(self.vectors)} vectors for the tokens of {len(self.tokens)} items.")
        object.__setattr__(self, "vectors", self.vectors.detach().cpu().float())


@dataclass(frozen=True)
class Member:
    """One encoder's images and captions; several of the same items are searched by the mean of their scores."""

    images: Side
    """All images."""
    captions: Side
    """All captions."""
    local: LocalConfig
    """Of the local branch that mapped the tokens: how they attend to each other, and which levels are compared."""
