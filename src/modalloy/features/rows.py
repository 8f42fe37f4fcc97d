"""The rows of the same items in several stores."""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from modalloy.errors import FeatureError
from modalloy.features.store import FeatureStore

_log = logging.getLogger(__name__)


def common_rows(stores: Sequence[FeatureStore], ids: Sequence[str]) -> tuple[list[str], list[Int[Tensor, "kept"]]]:
    """The `ids` that are valid in every store, in their order, and their rows in each store.

    Says in the log how many items were left out because some encoder rejected them.

    Raises:
        FeatureError: no store is given, or an id isn't in one of them.
    """
    if not stores:
        raise FeatureError("common_rows needs at least one feature store, got none.")
    rows = [store.rows_of(ids) for store in stores]
    valid = torch.stack([store.valid[places] for store, places in zip(stores, rows, strict=True)]).all(0)
    kept = [id for id, good in zip(ids, valid.tolist(), strict=True) if good]
    if len(kept) < len(ids):
        _log.warning(
            "%d of %d items left out, which some encoder rejected (see rejects.jsonl)",
            len(ids) - len(kept),
            len(ids),
        )
    return kept, [places[valid] for places in rows]
