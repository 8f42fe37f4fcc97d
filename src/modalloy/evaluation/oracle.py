"""The oracle bound: what a fusion could reach if it always trusted the right input."""

from collections.abc import Sequence

import torch

from modalloy.errors import DataError
from modalloy.evaluation.metrics import RetrievalMetrics, metrics
from modalloy.evaluation.ranks import Ranks


def oracle(inputs: Sequence[Ranks]) -> RetrievalMetrics:
    """Share of the queries that at least one input answers: metrics of each query's best rank.

    Raises:
        DataError: there is no input, or they rank different queries.

    >>> a, b = (Ranks(torch.tensor(ranks), torch.ones(2)) for ranks in ([1.0, 90.0], [90.0, 1.0]))
    >>> oracle([a, b]).image_to_text.recall_1
    100.0
    """
    sizes = [(len(ranks.image_to_text), len(ranks.text_to_image)) for ranks in inputs]
    if len(set(sizes)) != 1:
        raise DataError(f"the oracle needs inputs that rank the same queries, got (images, captions) of {sizes}")
    return metrics(
        Ranks(
            torch.stack([ranks.image_to_text for ranks in inputs]).amin(0),
            torch.stack([ranks.text_to_image for ranks in inputs]).amin(0),
        )
    )


def headroom_taken(best_input: float, oracle: float, alloy: float) -> float | None:
    """Share of the way from the best input's RSum to the oracle's that the alloy goes; None if there is none.

    It is negative for an alloy worse than its best input, and may exceed 1.

    >>> headroom_taken(best_input=400.0, oracle=500.0, alloy=430.0)
    0.3
    """
    return (alloy - best_input) / (oracle - best_input) if oracle > best_input else None
