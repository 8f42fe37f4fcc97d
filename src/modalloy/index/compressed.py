"""Search of many vectors in memory: all are compared by their principal components, the best by their whole vectors."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from modalloy.index.exact import best_rows

KEPT = 0.8
"""Of the square of how far a vector is from the mean, so much lies in its components."""
MOST = 0.999
"""Of so many vectors at least. The others are compared by their whole vectors whatever is asked, as is what is near."""
CANDIDATES = 500
"""At least so many are then compared by their whole vectors; 20 times as many as are to be found, if that is more.

Of the ten best among 100,000 none is missed: `benchmarks/search.py`."""
_SAMPLE, _BLOCK = 20_000, 8192
_LARGEST = 127  # in 8 bits
_LEAST_SPREAD = 1e-4  # of the largest


class CompressedVectors:
    """Vectors with what a first look at each of them needs.

    A scan takes as long as its numbers take to be read from memory. Turned so that the first components tell most (by
    PCA), vectors of 1,024 numbers often need some 180, and where the processor multiplies 8 bits fast (AVX-512 VNNI),
    these are kept in 8 bits.

    Args:
        vectors: finite, in float32; kept.
        eight_bits: whether components are kept in 8 bits; by default, where that makes the scan faster.
        longest: see `best_rows`.

    >>> vectors = torch.nn.functional.normalize(torch.randn(5000, 64, generator=torch.manual_seed(0)), dim=1)
    >>> rows, scores = CompressedVectors(vectors).best_rows(vectors[7], 2)
    >>> rows[0], scores[0].round(decimals=4)
    (tensor(7), tensor(1.))
    """

    def __init__(
        self, vectors: Float[Tensor, "items dim"], eight_bits: bool | None = None, longest: float | None = None
    ) -> None:
        self._vectors, self._longest = vectors, longest
        # Not every so manieth, as rows may repeat in a rhythm.
        drawn = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[:_SAMPLE]
        sample = vectors[drawn]
        # One of another length than they should have, in a damaged index, would hide what sets the others apart.
        norms = sample.norm(dim=1)
        sample = sample[norms <= 2 * norms.median()]
        # What all vectors have in common adds the same to each score.
        mean = sample.mean(dim=0)
        deviations = sample - mean
        directions = _directions(deviations, mean)
        # Each component is divided by its spread, and the query's multiplied, so that in 8 bits none drowns in another.
        spread = (deviations @ directions).std(dim=0, unbiased=False)
        spread = spread.clamp(min=max(float(spread.max()) * _LEAST_SPREAD, torch.finfo(spread.dtype).tiny))
        self._directions = directions * spread
        eight_bits = _has_vnni() if eight_bits is None else eight_bits
        self._components = torch.empty(
            len(vectors), directions.shape[1], dtype=torch.int8 if eight_bits else vectors.dtype
        )
        self._scales = torch.empty(len(vectors)) if eight_bits else None
        odd = torch.empty(len(vectors), dtype=torch.bool)
        for start in range(0, len(vectors), _BLOCK):
            here = slice(start, start + _BLOCK)
            deviations = vectors[here] - mean
            components = deviations @ directions
            # One way, so that what overflows is odd.
            odd[here] = ~(components.square().sum(dim=1) >= KEPT * deviations.square().sum(dim=1))
            components /= spread
            if self._scales is not None:
                components, self._scales[here] = _in_8_bits(components)
            self._components[here] = components
        self._odd = odd.nonzero()[:, 0]

    def best_rows(
        self, query: Float[Tensor, "dim"], k: int, allowed: Bool[Tensor, "items"] | None = None
    ) -> tuple[Int[Tensor, "found"], Float[Tensor, "found"]]:
        """See `modalloy.index.exact.best_rows`; unlike there, a row can be missed, if hardly ever."""
        wanted = max(CANDIDATES, 20 * k) + len(self._odd)
        if 4 * wanted > len(self._vectors):  # and to compare all takes no longer
            return best_rows(query, self._vectors, k, allowed, self._longest)
        rough = self._rough_scores(query @ self._directions)
        rough[self._odd] = torch.inf
        if allowed is not None:
            rough[~allowed] = -torch.inf
        count = len(rough) if allowed is None else int(allowed.sum())
        others = len(rough) - min(wanted, count)
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
    """The direction of the mean, and of those across it the first that keep `KEPT` of `MOST` vectors.

    Vectors differ little along their mean, but a query lies along it too, so that this little counts much.
    """
    # In float64, since squares of large numbers leave float32's range.
    along = torch.nn.functional.normalize(mean.double(), dim=0)[:, None]
    across = deviations.double()
    across = across - across @ along @ along.T
    # They keep less of others than of those that they are found by.
    seen, others = across[::2], across[1::2] if len(across) > 1 else across
    _, directions = torch.linalg.eigh(seen.T @ seen)
    directions = directions.flip(dims=(1,))  # those of the largest variance first
    kept = (others @ directions).square().cumsum(dim=1)
    share = (kept >= KEPT * kept[:, -1:]).double().mean(dim=0)
    return torch.cat([along, directions[:, : int((share < MOST).sum()) + 1]], dim=1).float()


def _in_8_bits(rows: Float[Tensor, "rows dim"]) -> tuple[Int[Tensor, "rows dim"], Float[Tensor, "rows"]]:
    """Rows as whole numbers, and what to multiply each by."""
    scales = rows.abs().amax(dim=1).clamp(min=torch.finfo(rows.dtype).tiny) / _LARGEST
    return (rows / scales[:, None]).round().to(torch.int8), scales


def _has_vnni() -> bool:
    """Whether products of 8 bits are faster than those of float32, and exact: older processors saturate in 16 bits."""
    return bool(torch.cpu.get_capabilities().get("avx512_vnni"))
