"""All vectors of an index's pictures, or captions, held in memory: searched faster than where they lie."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from modalloy.index.ann import EXACT_UP_TO
from modalloy.index.base import Found
from modalloy.index.compressed import CompressedVectors
from modalloy.index.exact import best_rows

MOST_BYTES = 2**29
"""What the vectors of pictures, or those of captions, may take at most, besides what makes their search fast, which is
less: enough for 260,000 of 512 numbers."""


def can_be_held(count: int, dim: int) -> bool:
    """Whether so many vectors fit.

    >>> can_be_held(100_000, 1024), can_be_held(1_000_000, 512)
    (True, False)

    Args:
        count: how many.
        dim: numbers in each.
    """
    return 4 * count * dim <= MOST_BYTES


class CachedVectors:
    """The vectors of one state of an index, of either modality.

    Args:
        ids: of the rows.
        row_ids: LanceDB's numbers of them, uint64.
        blocks: their vectors, in float32, some at a time; emptied, so that there are never more than two copies. Rows
            whose vector isn't finite are never found.
        exact_up_to: so many are compared one by one.

    >>> cached = CachedVectors(["b", "a"], np.array([7, 9], np.uint64), [torch.eye(2)])
    >>> cached.search(torch.eye(2)[:1], 2), cached.search(torch.eye(2)[:1], 2, allowed=np.array([9], np.uint64))
    ([Found(ids=['b', 'a'], scores=[1.0, 0.0])], [Found(ids=['a'], scores=[0.0])])
    >>> cached.row_ids(["b", "c"])
    {'b': 7}
    """

    def __init__(
        self,
        ids: Sequence[str],
        row_ids: np.ndarray,
        blocks: list[Tensor],
        exact_up_to: int = EXACT_UP_TO,
    ) -> None:
        vectors = torch.cat(blocks)
        blocks.clear()
        # One that isn't finite, in a damaged index, would spoil what is found of all; `modalloy index verify` names it.
        usable = vectors.isfinite().all(dim=1).nonzero()[:, 0].tolist()
        # Of equal scores the earlier one comes first, whatever order the rows were read in.
        order = sorted(usable, key=ids.__getitem__)
        self._ids, self._row_ids = [ids[row] for row in order], row_ids[order]
        self._vectors = vectors[order]
        del vectors
        self._longest = float(self._vectors.norm(dim=1).max()) if order else 0.0
        self._compressed = CompressedVectors(self._vectors, longest=self._longest) if len(order) > exact_up_to else None

    def search(
        self, queries: Float[Tensor, "queries dim"], k: int, allowed: np.ndarray | None = None, exact: bool = False
    ) -> list[Found]:
        """The best rows for each query.

        Args:
            queries: finite, in float32.
            k: how many to find.
            allowed: LanceDB's numbers of the rows among which to look; None for all.
            exact: look at every number of every vector, however many there are.
        """
        mask = None if allowed is None else torch.from_numpy(np.isin(self._row_ids, allowed))
        found = []
        for query in queries:
            if exact or self._compressed is None:
                rows, scores = best_rows(query, self._vectors, k, mask, self._longest)
            else:
                rows, scores = self._compressed.best_rows(query, k, mask)
            found.append(Found([self._ids[row] for row in rows.tolist()], scores.tolist()))
        return found

    def row_ids(self, ids: Iterable[str]) -> dict[str, int]:
        """LanceDB's number of each row; ids that aren't there are left out."""
        places = {id: bisect_left(self._ids, id) for id in ids}
        return {id: int(self._row_ids[place]) for id, place in places.items() if self._ids[place : place + 1] == [id]}
