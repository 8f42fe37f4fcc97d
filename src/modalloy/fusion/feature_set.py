"""The stored features of N encoders, row by row aligned: what fusers are fitted on and galleries embedded from."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from modalloy.encoders import Modality
from modalloy.errors import FeatureError
from modalloy.features import FeatureStore, pad
from modalloy.fusion.augmented_copies import AugmentedCopies
from modalloy.fusion.inputs import EncoderFeatures, InputShape


class FeatureSet:
    """The features of the same items by several encoders, of one modality.

    Args:
        stores: one store per encoder, in the encoders' order.
        augmented: for each encoder the stores of its augmented copies, of which training reads some; perhaps none.

    Raises:
        FeatureError: there is no store, or they differ in modality or items, which would pair features of
            different items.
    """

    def __init__(self, stores: Sequence[FeatureStore], augmented: Sequence[Sequence[FeatureStore]] = ()) -> None:
        if not stores:
            raise FeatureError("a feature set takes the stores of one encoder or more, got none.")
        first = stores[0]
        for position, store in enumerate(stores):
            if store.modality != first.modality:
                raise FeatureError(
                    f"encoder {position}'s features are of modality {store.modality!r}, encoder 0's of "
                    f"{first.modality!r}; pass the stores of one modality."
                )
            if list(store.ids) != list(first.ids):
                raise FeatureError(
                    f"the features of encoders 0 and {position} don't hold the same {first.modality} items in the "
                    f"same order ({len(first)} and {len(store)} items); extract both from one manifest."
                )
        self.stores = tuple(stores)
        self.modality: Modality = first.modality
        self.ids = first.ids
        self.valid: Bool[Tensor, " rows"] = torch.stack([store.valid for store in stores]).all(dim=0)
        if augmented and len(augmented) != len(stores):
            raise FeatureError(
                f"got augmented copies for {len(augmented)} of {len(stores)} encoders; pass one list each."
            )
        copies = augmented or [()] * len(stores)
        self.augmented = tuple(map(AugmentedCopies, stores, copies))

    def __len__(self) -> int:
        return len(self.stores[0])

    def embeddings(self, encoder: int, rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """The unit-norm embeddings of one encoder."""
        return self.stores[encoder].embeddings(rows)

    @property
    def copies(self) -> int:
        """How many augmented copies of an item there are, of the encoder that has most."""
        return max(map(len, self.augmented))

    def batch(
        self, rows: Int[Tensor, " batch"], tokens: int | None = None, copies: Int[Tensor, " batch"] | None = None
    ) -> list[EncoderFeatures]:
        """Every encoder's embeddings and padded tokens of the given rows.

        Args:
            rows: which items.
            tokens: how many of each item's tokens to read at most, from the summary token on; they are nearly all of
                the data. By default all; with 0 items have none.
            copies: which augmented copy of each item, -1 for the item itself; by default the items themselves. An
                encoder without that copy of an item gives its features of the item itself.
        """
        if copies is None:
            return [_read(store, rows, tokens) for store in self.stores]
        return [each.gather(rows, copies, lambda store, part: _read(store, part, tokens)) for each in self.augmented]

    def batches(
        self, rows: Int[Tensor, " items"], batch_size: int, tokens: int | None = None
    ) -> Iterable[list[EncoderFeatures]]:
        """The features of the given rows in batches, in order."""
        # An empty tensor splits into one empty part, which has no tokens to fuse.
        return (self.batch(part, tokens) for part in rows.split(batch_size) if len(part))


def _read(store: FeatureStore, rows: Int[Tensor, " batch"], tokens: int | None) -> EncoderFeatures:
    embeddings = store.embeddings(rows)
    if tokens == 0:
        none = embeddings.new_zeros(len(rows), 0, store.width)
        return EncoderFeatures(embeddings, none, none.new_zeros(len(rows), 0, dtype=torch.bool))
    padded, mask = pad(*store.tokens(rows, tokens))
    return EncoderFeatures(embeddings, padded.float(), mask)


def input_shapes(image_features: FeatureSet, text_features: FeatureSet) -> list[InputShape]:
    """The widths of each encoder's features, which a fuser is made for.

    Raises:
        FeatureError: the two sets differ in their number of encoders, or an encoder's image and text embeddings
            in width, so that they have no inner product.
    """
    shapes = []
    if len(image_features.stores) != len(text_features.stores):
        raise FeatureError(
            f"got image features of {len(image_features.stores)} encoders and text features of "
            f"{len(text_features.stores)}; pass both of each encoder."
        )
    pairs = zip(image_features.stores, text_features.stores, strict=True)
    for position, (image, text) in enumerate(pairs):
        if image.dim != text.dim:
            raise FeatureError(
                f"encoder {position}'s image embeddings are {image.dim} wide and its text embeddings {text.dim}; "
                "only dual encoders can be fused: align the two backbones first."
            )
        shapes.append(InputShape(image.dim, image.width, text.width))
    return shapes
