"""A gallery's items as networks in training encode them, gathered batch by batch."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.align import Tokens, compared_packed
from modalloy.encoders import Encoded, Level, Modality
from modalloy.training.align_batches import Gallery, Sample, TokenBatch

_NONE = torch.empty(0, dtype=torch.long)


class EncodedItems:
    """Embeddings of all items of a modality that could be read, and tokens of a sample of them.

    Args:
        modality: what they are.
        sampled: rows of the items whose tokens are kept.
    """

    def __init__(self, modality: Modality, sampled: Int[Tensor, "some"]) -> None:
        self._modality: Modality = modality
        self._sampled = sampled
        self._rows: list[Tensor] = []
        self._embeddings: list[Tensor] = []
        self._tokens: dict[Level, list[Tensor]] = {}

    def add(self, rows: Int[Tensor, "batch"], levels: Mapping[Level, Encoded]) -> None:
        """Takes what a backbone makes of the items in `rows`."""
        self._rows.append(rows)
        self._embeddings.append(levels["high"].embedding)
        chosen = torch.isin(rows, self._sampled).nonzero()[:, 0].tolist()
        for level, encoded in levels.items():
            tokens = encoded.tokens_of_each()
            # Copies, since views would keep the whole batch.
            self._tokens.setdefault(level, []).extend(tokens[place].clone() for place in chosen)

    @property
    def rows(self) -> Int[Tensor, "items"]:
        """The items that were added."""
        return torch.cat([_NONE, *self._rows])

    @property
    def sampled_rows(self) -> Int[Tensor, "some"]:
        """Those of them whose tokens are kept."""
        return self.rows[torch.isin(self.rows, self._sampled)]

    @property
    def embeddings(self) -> Float[Tensor, "items dim"]:
        """Their embeddings; there must be one or more."""
        return torch.cat(self._embeddings)

    def tokens(self) -> dict[Level, Tokens]:
        """What a local branch compares of the sampled items; there must be one or more."""
        packed = {
            level: (torch.cat(tokens), torch.tensor([len(each) for each in tokens]))
            for level, tokens in self._tokens.items()
        }
        return compared_packed(self._modality, packed)


def encoded_gallery(images: EncodedItems, captions: EncodedItems, caption_image: Int[Tensor, "all"]) -> Gallery:
    """The gallery of some images and of captions of these images.

    Args:
        images: the images, one or more.
        captions: captions of theirs.
        caption_image: the image row of every caption row.
    """
    sampled, described = images.sampled_rows, captions.sampled_rows
    sample = None
    if len(described):
        places = _places(sampled, caption_image[described])
        sample = Sample(TokenBatch(images.tokens(), captions.tokens()), places)
    places = _places(images.rows, caption_image[captions.rows])
    return Gallery(images.embeddings, captions.embeddings, places, sample)


def _places(rows: Int[Tensor, "rows"], wanted: Int[Tensor, "wanted"]) -> Int[Tensor, "wanted"]:
    """Where each of `wanted` stands in `rows`."""
    order = rows.argsort()
    return order[torch.searchsorted(rows[order], wanted)]
