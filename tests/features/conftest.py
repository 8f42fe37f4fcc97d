"""A small encoder and small collections, so that feature tests need no weights."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from modalloy.data.manifest import Item, Manifest
from modalloy.encoders.base import Encoded, Encoder, Fingerprint, Modality
from modalloy.errors import DataError
from modalloy.files import sha256_of


class FakeEncoder(Encoder):
    """Embeds a picture's first pixel or a text's letters; an item has one to four tokens."""

    name = "Fake"
    spec = "fake"
    modalities: tuple[Modality, ...] = ("image", "text")

    def __init__(self, weights: str = "0") -> None:
        self.weights = weights

    def fingerprint(self, modality: Modality) -> Fingerprint:
        return Fingerprint(f"fake {modality}", "1", self.weights * 64, "0" * 64)

    def dim(self, modality: Modality) -> int:
        return 3

    def width(self, modality: Modality) -> int:
        return 2

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
        if isinstance(item, Image.Image):
            return torch.tensor(item.getpixel((0, 0)), dtype=torch.float32)
        if "refused" in item:
            raise DataError("this caption is refused")
        if "crash" in item:
            raise ValueError("crashed")
        return torch.tensor([ord(letter) for letter in item], dtype=torch.float32)

    def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
        sums = torch.stack([item.sum() for item in prepared])
        lengths = sums.long() % 4 + 1
        embedding = torch.stack([sums, sums.sin(), torch.ones_like(sums)], 1)
        tokens = torch.cat(
            [
                torch.stack([total.expand(length), torch.arange(length)], 1)
                for total, length in zip(sums, lengths, strict=True)
            ]
        )
        return Encoded(torch.nn.functional.normalize(embedding, dim=1), tokens, lengths)


def collection_in(
    root: Path, images: int, corrupt: Sequence[int] = (), captions: Sequence[str] = ("one", "two words")
) -> Manifest:
    """A collection of one-colour pictures, some corrupt, each with the same captions and its number."""
    root.mkdir(parents=True, exist_ok=True)
    items = []
    for number in range(images):
        path = root / f"{number}.png"
        if number in corrupt:
            path.write_bytes(b"not a picture")
        else:
            Image.new("RGB", (4, 4), (number, 2 * number, 7)).save(path)
        texts = tuple(f"{caption} {number}" for caption in captions)
        items.append(Item(f"item{number}", path.name, sha256_of(path), "test", texts))
    return Manifest(root, tuple(items))


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def make_encoder() -> type[FakeEncoder]:
    return FakeEncoder


@pytest.fixture
def make_collection(tmp_path: Path) -> Callable[..., Manifest]:
    def make(images: int, name: str = "pictures", **options: object) -> Manifest:
        return collection_in(tmp_path / name, images, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def files_in() -> Callable[[Path], dict[str, bytes]]:
    """What a folder holds, byte for byte."""
    return lambda folder: {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
