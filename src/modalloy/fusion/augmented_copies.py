"""One encoder's features of augmented copies of its items, found by the rows of the items themselves."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from modalloy.errors import FeatureError
from modalloy.features import FeatureStore
from modalloy.fusion.inputs import EncoderFeatures


class AugmentedCopies:
    """An encoder's features of some items, and of augmented copies of all or some of them.

    Args:
        plain: the features of the items themselves.
        stores: one store per copy, by the same encoder; each may hold some of the items only.

    Raises:
        FeatureError: a copy's features are another encoder's, or of items that `plain` doesn't hold.
    """

    def __init__(self, plain: FeatureStore, stores: Sequence[FeatureStore]) -> None:
        self.plain = plain
        self.stores = tuple(stores)
        # -1 where a copy lacks an item, or its picture was rejected.
        self._rows = torch.full((len(stores), len(plain)), -1)
        for copy, store in enumerate(stores):
            if (store.modality, store.fingerprint) != (plain.modality, plain.fingerprint):
                raise FeatureError(
                    f"the augmented features in {store.folder} weren't made by the encoder of {plain.folder} "
                    f"(or not of its modality, {plain.modality}); extract both with one encoder."
                )
            self._rows[copy, plain.rows_of(store.ids)[store.valid]] = store.valid.nonzero().squeeze(1)

    def __len__(self) -> int:
        return len(self.stores)

    def lacking(self, rows: Int[Tensor, " items"]) -> int:
        """How many of the copies of the given items are missing or were rejected."""
        return int((self._rows[:, rows] < 0).sum())

    def gather(
        self,
        rows: Int[Tensor, " batch"],
        copies: Int[Tensor, " batch"],
        read: Callable[[FeatureStore, Int[Tensor, " part"]], EncoderFeatures],
    ) -> EncoderFeatures:
        """The features of the chosen copies, or of the item itself where there is no such copy.

        Args:
            rows: which items.
            copies: which copy of each; -1 for the item itself.
            read: reads the features of some rows of a store.
        """
        source = torch.full_like(rows, -1)
        within = rows.clone()
        for copy in range(len(self)):
            found = (copies == copy) & (self._rows[copy, rows] >= 0)
            source[found] = copy
            within[found] = self._rows[copy, rows[found]]
        parts = []
        for copy in source.unique().tolist():
            places = (source == copy).nonzero().squeeze(1)
            parts.append((places, read(self.plain if copy < 0 else self.stores[copy], within[places])))
        return _merge(parts) if parts else read(self.plain, rows)


def _merge(parts: Sequence[tuple[Tensor, EncoderFeatures]]) -> EncoderFeatures:
    """One batch of several, whose items go to the places that stand beside them; padded to the longest."""
    if len(parts) == 1:
        return parts[0][1]
    first = parts[0][1]
    batch = sum(len(places) for places, _ in parts)
    longest = max(features.tokens.shape[1] for _, features in parts)
    embedding = first.embedding.new_empty(batch, first.embedding.shape[1])
    tokens = first.tokens.new_zeros(batch, longest, first.tokens.shape[2])
    mask = first.mask.new_zeros(batch, longest)
    for places, features in parts:
        count = features.tokens.shape[1]
        embedding[places] = features.embedding
        tokens[places, :count] = features.tokens
        mask[places, :count] = features.mask
    return EncoderFeatures(embedding, tokens, mask)
