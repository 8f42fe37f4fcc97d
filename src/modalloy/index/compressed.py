"""Search of many vectors in memory: all are compared by their principal components, the best by their whole vectors."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from modalloy.index.exact import best_rows

VARIANCE = 0.95
"""Of what sets the vectors apart, so much lies in the components."""
CANDIDATES = 1000
"""At least so many are then compared by their whole vectors; 20 times as many as are to be found, if that is more.

Of the ten best among 100,000 none is missed: `benchmarks/search.py`."""
_SAMPLE, _BLOCK = 10_000, 8192
_LARGEST = 127  # in 8 bits


class CompressedVectors:
    """Vectors with what a first look at each of them needs.

    A scan takes as long as its numbers take to be read from memory. Turned so that the first components tell most (by
    PCA), vectors of 1,024 numbers often need some 220, and where the processor multiplies 8 bits fast (AVX-512 VNNI),
    these are kept in 8 bits.

    Args:
        vectors: finite, in float32; kept.
        eight_bits: whether components are kept in 8 bits; by default, where that makes the scan faster.

    >>> vectors = torch.nn.functional.normalize(torch.randn(5000, 64, generator=torch.manual_seed(0)), dim=1)
    >>> rows, scores = CompressedVectors(vectors).best_rows(vectors[7], 2)
    >>> rows[0], scores[0].round(decimals=4)
    (tensor(7), tensor(1.))
    """

    def __init__(self, vectors: Float[Tensor, "items dim"], eight_bits: bool | None = None) -> None:
        self._vectors, self._longest = vectors, float(vectors.norm(dim=1).max())
        sample = vectors[:: max(1, len(vectors) // _SAMPLE)]
        # What all vectors have in common adds the same to each score.
        mean = sample.mean(dim=0)
        self._directions = _directions(sample - mean, mean)
        blocks = [(block - mean) @ self._directions for block in vectors.split(_BLOCK)]
        self._scales: Float[Tensor, "items"] | None = None
        if _has_vnni() if eight_bits is None else eight_bits:
            pairs = [_in_8_bits(block) for block in blocks]
            blocks = [codes for codes, _ in pairs]
            self._scales = torch.cat([scales for _, scales in pairs])
        self._components = torch.cat(blocks)

    def best_rows(
        self, query: Float[Tensor, "dim"], k: int, allowed: Bool[Tensor, "items"] | None = None
    ) -> tuple[Int[Tensor, "found"], Float[Tensor, "found"]]:
        """See `modalloy.index.exact.best_rows`; unlike there, a row can be missed, if hardly ever."""
        rough = self._rough_scores(query @ self._directions)
        if allowed is not None:
            rough[~allowed] = -torch.inf
        count = len(rough) if allowed is None else int(allowed.sum())
        others = len(rough) - min(max(CANDIDATES, 20 * k), count)
        # PyTorch's topk takes three times as long.
        parted = np.argpartition(rough.numpy(), others) if others < len(rough) else np.empty(0, np.int64)
        near = torch.from_numpy(np.sort(parted[others:]))
        rows, scores = best_rows(query, self._vectors.index_select(0, near), k, longest=self._longest)
        return near[rows], scores

    def _rough_scores(self, query: Float[Tensor, "components"]) -> Float[Tensor, "items"]:
        """Inner products with the components, but for a factor that is the same for all."""
        if self._scales is None:
            return self._components @ query
        codes, _ = _in_8_bits(query[None])
        return torch._int_mm(self._components, codes.T.contiguous())[:, 0] * self._scales


def _directions(deviations: Float[Tensor, "sample dim"], mean: Float[Tensor, "dim"]) -> Float[Tensor, "dim components"]:
    """The direction of the mean, and of those across it the fewest that hold `VARIANCE`.

    Vectors differ little along their mean, but a query lies along it too, so that this little counts much.
    """
    # In float64, since squares of large numbers leave float32's range.
    along = torch.nn.functional.normalize(mean.double(), dim=0)[:, None]
    across = deviations.double()
    across = across - across @ along @ along.T
    variances, directions = torch.linalg.eigh(across.T @ across)
    # In ascending order.
    left_out = int((variances.cumsum(0) <= (1 - VARIANCE) * variances.sum()).sum())
    return torch.cat([along, directions[:, left_out:]], dim=1).float()


def _in_8_bits(rows: Float[Tensor, "rows dim"]) -> tuple[Int[Tensor, "rows dim"], Float[Tensor, "rows"]]:
    """Rows as whole numbers, and what to multiply each by."""
    scales = rows.abs().amax(dim=1).clamp(min=torch.finfo(rows.dtype).tiny) / _LARGEST
    return (rows / scales[:, None]).round().to(torch.int8), scales


def _has_vnni() -> bool:
    """Whether products of 8 bits are faster than those of float32, and exact: older processors saturate in 16 bits."""
    return bool(torch.cpu.get_capabilities().get("avx512_vnni"))
