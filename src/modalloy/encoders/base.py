"""The seam between modalloy and any pretrained model: what an encoder takes, and what it gives.

A new encoder implements five methods of `Encoder`: `fingerprint`, `dim`, `width`, `preprocess` and `forward`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from modalloy.encoders.fingerprint import Fingerprint as Fingerprint
from modalloy.encoders.fingerprint import sha256_of_settings as sha256_of_settings
from modalloy.encoders.recompute import recompute_blocks
from modalloy.errors import ConfigError, DataError

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, Modality] = ("image", "text")

Level = Literal["high", "mid"]
"""What `forward` gives, or what `forward_mid` gives."""

_MOST_ELONGATED = 1000

Prepared = Tensor | tuple[Any, ...]
"""What `preprocess` makes of an item for `forward`: a tensor, or one for each encoder inside the encoder."""


@dataclass(frozen=True)
class Encoded:
    """A batch of encoded items, whose tokens are packed one item after the other.

    >>> encoded = Encoded(torch.eye(2), torch.arange(10.0).view(5, 2), torch.tensor([2, 3]))
    >>> [tokens.shape[0] for tokens in encoded.tokens_of_each()]
    [2, 3]
    """

    embedding: Float[Tensor, "batch dim"]
    """One vector an item, of unit norm."""
    tokens: Float[Tensor, "packed width"]
    """The items' tokens one after the other; within each item the summary token comes first."""
    lengths: Int[Tensor, "batch"]
    """Number of tokens of each item, the summary token included."""

    def __post_init__(self) -> None:
        if int(self.lengths.sum()) != self.tokens.shape[0]:
            raise DataError(
                f"Encoded: the lengths add up to {int(self.lengths.sum())} tokens, "
                f"but {self.tokens.shape[0]} are given; each token must belong to one item."
            )

    def __len__(self) -> int:
        return self.embedding.shape[0]

    def tokens_of_each(self) -> tuple[Tensor, ...]:
        """Each item's tokens, "tokens width", as views into the packed tensor."""
        return torch.split(self.tokens, self.lengths.tolist())

    @classmethod
    def concatenate(cls, parts: Iterable["Encoded"]) -> Self:
        """Joins batches along the batch axis, in the order given (at least one)."""
        parts = list(parts)
        return cls(
            torch.cat([part.embedding for part in parts]),
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.lengths for part in parts]),
        )


class Encoder(ABC):
    """A frozen pretrained model that turns images, texts or both into embeddings and tokens.

    An item's result doesn't depend on the batch it is in, beyond rounding.
    """

    name: str
    """For people: "EfficientNet-Lite0"."""
    spec: str
    """What `load_encoder` takes to build this encoder again: "efficientnet-lite0"."""
    modalities: tuple[Modality, ...]
    """What it encodes."""
    device: torch.device = torch.device("cpu")
    """Where the model runs; what `forward` gives may live there too."""

    def to(self, device: str | torch.device) -> Self:
        """Moves the model to a device, such as "cuda:0"."""
        self.device = torch.device(device)
        for part in self._parts():
            part.to(self.device)
        return self

    def _parts(self) -> "Iterable[nn.Module | Encoder]":
        """What has to move with the encoder: its networks, unless a subclass says otherwise."""
        return [value for value in vars(self).values() if isinstance(value, nn.Module)]

    @abstractmethod
    def fingerprint(self, modality: Modality) -> Fingerprint:
        """Says which weights and preprocessing make the features of `modality`."""

    @abstractmethod
    def dim(self, modality: Modality) -> int:
        """Length of an embedding."""

    @abstractmethod
    def width(self, modality: Modality) -> int:
        """Length of a token."""

    @abstractmethod
    def preprocess(self, modality: Modality, item: Image.Image | str) -> Prepared:
        """Makes one item ready for `forward`: "channels height width" of an RGB image, token ids of a text.

        Safe to call from several threads at once.

        Raises:
            DataError: the item can't be encoded, for example a blank text.
        """

    @abstractmethod
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> Encoded:
        """Collates what `preprocess` gave (one item or more) and runs the frozen model, without gradients."""

    def mid_layer(self, modality: Modality) -> str | None:
        """The earlier layer that `forward_mid` reads, by name; None where there is no second token level."""
        return None

    def forward_mid(self, modality: Modality, prepared: Sequence[Any]) -> Encoded:
        """Like `forward`, but what the model makes of the items up to `mid_layer`; see `modalloy.encoders.mid`.

        Raises:
            ConfigError: there is no such layer.
        """
        raise ConfigError(f"{self.spec} has no second token level of {modality}s.")

    def network(self, modality: Modality) -> nn.Module | None:
        """The network whose parameters make the features of `modality`, to be trained on.

        It comes frozen and in evaluation mode. None where the encoder can't be trained further.
        """
        return None

    def forward_levels(
        self, modality: Modality, prepared: Sequence[Any], levels: Collection[Level]
    ) -> dict[Level, Encoded]:
        """What `forward` ("high") and `forward_mid` ("mid") give, in one pass, with gradients where enabled.

        Raises:
            ConfigError: there is no such level, or the encoder can't be trained further.
        """
        raise ConfigError(_untrainable(self))

    def recompute_activations(self, modality: Modality) -> None:
        """From now on the backward pass computes the inside of each block again, instead of keeping it in memory.

        Gradients stay the same, dropout included (`recompute_blocks` says how).

        Raises:
            ConfigError: the encoder can't be trained further, or its network has no blocks.
        """
        recompute_blocks(require_network(self, modality))

    def token_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the image tokens after the summary token; None where they have no grid."""
        return None

    def token_texts(self, text: str) -> list[str] | None:
        """What each text token stands for, the summary token first; None where tokens stand for no words."""
        return None

    def encode_images(self, images: Sequence[Image.Image | str | Path], batch_size: int = 32) -> Encoded:
        """Encodes pictures in RGB, or the files of that path.

        Raises:
            ImageError: a file can't be decoded.
            ConfigError: the encoder has no images.
        """
        self._require("image")
        _refuse_single(images)

        def prepare(image: Image.Image | str | Path) -> Prepared:
            from modalloy.data.images import open_image

            picture = image if isinstance(image, Image.Image) else open_image(image)
            return self.preprocess("image", picture)

        return self._encode("image", images, prepare, batch_size)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 32) -> Encoded:
        """Encodes texts.

        Raises:
            DataError: a text is blank.
            ConfigError: the encoder has no texts.
        """
        self._require("text")
        _refuse_single(texts)
        return self._encode("text", texts, lambda text: self.preprocess("text", text), batch_size)

    def _encode(
        self, modality: Modality, items: Sequence[Any], prepare: Callable[[Any], Prepared], batch_size: int
    ) -> Encoded:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
        if not items:
            return Encoded(
                torch.empty(0, self.dim(modality)),
                torch.empty(0, self.width(modality)),
                torch.empty(0, dtype=torch.long),
            )
        batches = (items[start : start + batch_size] for start in range(0, len(items), batch_size))
        return Encoded.concatenate(self.forward(modality, [prepare(item) for item in batch]) for batch in batches)

    def _require(self, modality: str) -> None:
        if modality not in self.modalities:
            raise ConfigError(
                f"{self.spec} encodes {' and '.join(self.modalities)}, not {modality}; "
                f"choose an encoder of {modality}s."
            )


def require_network(encoder: Encoder, modality: Modality) -> nn.Module:
    """The network of `modality`, to be trained on.

    Raises:
        ConfigError: the encoder can't be trained further.
    """
    network = encoder.network(modality)
    if network is None:
        raise ConfigError(_untrainable(encoder))
    return network


def _untrainable(encoder: Encoder) -> str:
    return f"{encoder.spec} can't be trained further; keep it frozen, or choose a backbone (docs/encoders.md)."


def require_text(text: object) -> str:
    """Gives `text` back if it can be encoded.

    >>> require_text("a red telephone")
    'a red telephone'

    Raises:
        DataError: it is no string, blank, or holds half a surrogate pair (bytes that weren't UTF-8).
    """
    if not isinstance(text, str):
        raise DataError(f"A text must be a string, got {type(text).__name__}.")
    if not text.strip():
        raise DataError(f"A text must hold at least one visible character, got {text!r}.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"A text must be valid Unicode, got {text[:80]!r}; read its file as UTF-8.") from None
    return text


def require_image(image: object) -> Image.Image:
    """Gives `image` back if it can be encoded.

    Raises:
        DataError: it is no PIL image in RGB, whose flattening is `open_image`'s to decide; or so elongated that scaling
            its short side to a model's input would take gigabytes.
    """
    if not isinstance(image, Image.Image):
        raise DataError(f"An image must be a PIL image, got {type(image).__name__}.")
    if image.mode != "RGB":
        raise DataError(
            f"An image must be in RGB, got mode {image.mode}; give its path instead, or open it with "
            "modalloy.data.images.open_image, which flattens transparency and scales 16-bit greys."
        )
    if min(image.size) * _MOST_ELONGATED < max(image.size):
        raise DataError(
            f"An image may be at most {_MOST_ELONGATED} times as long as it is wide, got {image.width} x {image.height}"
            " pixels; crop it."
        )
    return image


def _refuse_single(items: object) -> None:
    if isinstance(items, str | Path | Image.Image):
        raise DataError(f"Expected a sequence of items, got a single {type(items).__name__}; wrap it: [item].")
