"""From the encoder's answers for some rows to a shard: rejected rows stay in place, without features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modalloy.encoders.base import Encoded, Encoder, Modality, Prepared
from modalloy.errors import FeatureError
from modalloy.features.shard import Shard


@dataclass(frozen=True)
class Rejection:
    """Stands where an item's features would be."""

    reason: str


@dataclass(frozen=True)
class Features:
    """One item's features as they are stored."""

    embedding: Tensor
    tokens: Tensor


def encode(
    encoder: Encoder, modality: Modality, prepared: Sequence[Prepared | Rejection]
) -> list[Features | Rejection]:
    """Runs the encoder over a batch's items that aren't rejected yet; rejects what comes out non-finite.

    Raises:
        FeatureError: the encoder gave other shapes than it says.
    """
    good = [item for item in prepared if not isinstance(item, Rejection)]
    if not good:
        return [item for item in prepared if isinstance(item, Rejection)]
    with torch.inference_mode():
        answers = iter(answers_of(encoder.forward(modality, good), encoder, modality, len(good)))
    return [item if isinstance(item, Rejection) else next(answers) for item in prepared]


def answers_of(encoded: Encoded, encoder: Encoder, modality: Modality, batch: int) -> list[Features | Rejection]:
    """What an encoder made of a batch, item by item as it is stored; what isn't finite then is rejected.

    Raises:
        FeatureError: the encoder gave other shapes than it says.
    """
    return _features(_checked(encoded, encoder, modality, batch))


def assemble(features: Sequence[Features | Rejection], dim: int, width: int) -> Shard:
    """One shard of the rows' features.

    >>> shard = assemble([Rejection("unreadable"), Features(torch.ones(1), torch.ones(2, 3).half())], 1, 3)
    >>> shard.valid.tolist(), shard.offsets.tolist(), shard.embedding.tolist()
    ([False, True], [0, 0, 2], [[nan], [1.0]])
    """
    none = torch.empty(0, width, dtype=torch.float16)
    tokens = [none if isinstance(row, Rejection) else row.tokens for row in features]
    nan = torch.full((dim,), torch.nan)
    lengths = torch.tensor([0, *(len(piece) for piece in tokens)])
    return Shard(
        embedding=torch.stack([nan if isinstance(row, Rejection) else row.embedding for row in features]),
        valid=torch.tensor([not isinstance(row, Rejection) for row in features]),
        tokens=torch.cat(tokens),
        offsets=lengths.cumsum(0),
    )


def _features(encoded: Encoded) -> list[Features | Rejection]:
    # Tested as stored: a token beyond float16's range becomes infinite there.
    embedding = encoded.embedding.to("cpu", torch.float32)
    tokens = encoded.tokens.to("cpu", torch.float16)
    lengths = encoded.lengths.tolist()
    # A float32 sum of float16 numbers is finite exactly if they all are, and 25 times as fast as isfinite.
    whole_tokens = tokens.sum(1, dtype=torch.float32).isfinite().split(lengths)
    rows = zip(embedding, embedding.isfinite().all(1).tolist(), tokens.split(lengths), whole_tokens, strict=True)
    return [
        Features(vector, pieces)
        if finite and bool(whole.all())
        else Rejection("non-finite " + ("token (NaN, or beyond float16)" if finite else "embedding"))
        for vector, finite, pieces, whole in rows
    ]


def _checked(encoded: Encoded, encoder: Encoder, modality: Modality, batch: int) -> Encoded:
    got = (tuple(encoded.embedding.shape), encoded.tokens.shape[1], tuple(encoded.lengths.shape))
    expected = ((batch, encoder.dim(modality)), encoder.width(modality), (batch,))
    if got != expected or int(encoded.lengths.min()) < 1:
        raise FeatureError(
            f"{encoder.spec} broke its contract for a batch of {batch}: expected (shape of the embeddings, "
            f"token width, shape of the lengths) = {expected}, got {got}; and every item must have a token, "
            f"the fewest are {int(encoded.lengths.min())}. Mend the encoder."
        )
    return encoded
