"""Retrieval vectors that may be cut short: an orthogonal rotation that puts what matters most first."""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from modalloy.encoders import Modality
from modalloy.errors import ConfigError
from modalloy.fusion.base import Fuser
from modalloy.fusion.inputs import EncoderFeatures
from modalloy.fusion.paired_features import SplitFeatures


def truncate(vectors: Float[Tensor, "items dim"], dim: int) -> Float[Tensor, "items short"]:
    """The first `dim` numbers of each vector, brought to unit norm again (Kusupati et al., NeurIPS 2022).

    Raises:
        ConfigError: `dim` isn't between 1 and the vectors' width.

    >>> truncate(torch.tensor([[3.0, 4.0, 12.0]]) / 13, 2)
    tensor([[0.6000, 0.8000]])
    """
    if not 1 <= dim <= vectors.shape[-1]:
        raise ConfigError(f"a vector of {vectors.shape[-1]} numbers can be cut to 1..{vectors.shape[-1]}, got {dim}.")
    return F.normalize(vectors[..., :dim], dim=-1)


def principal_rotation(vectors: Float[Tensor, "items dim"]) -> Float[Tensor, "dim dim"]:
    """The orthogonal map whose first k coordinates keep most of all inner products of `vectors`, for every k.

    These are the right singular vectors: by Eckart and Young no other k coordinates come closer to the vectors, or to
    the matrix of their inner products. The vectors aren't centred, which would change inner products.

    Args:
        vectors: those to fit it on.

    Raises:
        ConfigError: there are none, or one isn't finite.

    >>> rotation = principal_rotation(torch.tensor([[0.0, 2.0], [0.0, 1.0], [1.0, 0.0]]))
    >>> rotation.abs()
    tensor([[0., 1.],
            [1., 0.]])
    """
    if not len(vectors) or not bool(vectors.isfinite().all()):
        raise ConfigError(f"a rotation is fitted on finite vectors, got {len(vectors)} with NaN or infinity, or none.")
    exact = vectors.double()
    # In ascending order of the squared singular values.
    return torch.linalg.eigh(exact.T @ exact).eigenvectors.flip(1).float()


def uncut(fuser: Fuser) -> Fuser:
    """What made a fuser's vectors before they were rotated and cut; another fuser as it is."""
    return fuser.fuser if isinstance(fuser, Rotated) else fuser


class Rotated(Fuser):
    """Another fuser's retrieval vectors, rotated, and cut to their first `dim` numbers.

    At full width the inner products are those of the fuser within rounding; at less they are approximated.

    Args:
        fuser: what makes the vectors.
        rotation: an orthogonal map of them, as `Rotated.fit` finds it.
        dim: how many numbers to keep; by default all.

    Raises:
        ConfigError: the rotation isn't as wide as the vectors, or `dim` is wider.
    """

    rotation: Float[Tensor, "dim short"]

    def __init__(self, fuser: Fuser, rotation: Float[Tensor, "dim dim"], dim: int | None = None) -> None:
        super().__init__()
        if rotation.shape != (fuser.dim, fuser.dim):
            raise ConfigError(
                f"expected a rotation of {fuser.dim} x {fuser.dim} for this fuser's vectors, "
                f"got {tuple(rotation.shape)}."
            )
        dim = fuser.dim if dim is None else dim
        if not 1 <= dim <= fuser.dim:
            raise ConfigError(f"the fuser's vectors of {fuser.dim} numbers can be cut to 1..{fuser.dim}, got {dim}.")
        self.fuser = fuser
        self.shapes = fuser.shapes
        self.register_buffer("rotation", rotation[:, :dim].contiguous())

    @classmethod
    def fit(cls, fuser: Fuser, train: SplitFeatures, dim: int | None = None) -> Self:
        """A rotation fitted on the vectors of training images and captions together.

        Args:
            fuser: what makes the vectors.
            train: the training items, never those to evaluate on.
            dim: how many numbers to keep; by default all.
        """
        return cls(fuser, principal_rotation(torch.cat(train.vectors(fuser))), dim)

    @property
    def tokens_read(self) -> int | None:
        return self.fuser.tokens_read

    @property
    def dim(self) -> int:
        return self.rotation.shape[1]

    def embed(self, modality: Modality, inputs: Sequence[EncoderFeatures]) -> Float[Tensor, "batch dim"]:
        whole = self.fuser.embed(modality, inputs)
        # To the norm that it had: an item that lacks a weighted input has a shorter vector.
        return F.normalize(whole @ self.rotation, dim=-1) * whole.norm(dim=-1, keepdim=True)
