"""A small dual encoder and a collection of coloured pictures, whose captions name the colour."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from modalloy.data import Item, Manifest
from modalloy.encoders import Encoded, Encoder, Fingerprint, Modality
from modalloy.files import sha256_of

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}


class ColourEncoder(Encoder):
    """A picture's mean colour and the first colour word of a text, both as unit vectors."""

    name = "Colours"
    spec = "colours"

    def __init__(self, weights: str = "0", modalities: tuple[Modality, ...] = ("image", "text")) -> None:
        self.weights = weights
        self.modalities = modalities

    def fingerprint(self, modality: Modality) -> Fingerprint:
        return Fingerprint(f"colours, {modality}", "1", self.weights * 64, "0" * 64)

    def dim(self, modality: Modality) -> int:
        return 3

    def width(self, modality: Modality) -> int:
        return 3

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
        if isinstance(item, Image.Image):
            return torch.tensor(item.resize((1, 1)).getpixel((0, 0)), dtype=torch.float32)
        return torch.tensor(next(rgb for word, rgb in COLOURS.items() if word in item), dtype=torch.float32)

    def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
        vectors = torch.nn.functional.normalize(torch.stack(list(prepared)), dim=1)
        return Encoded(vectors, vectors, torch.ones(len(prepared), dtype=torch.long))


@pytest.fixture
def encoder() -> ColourEncoder:
    return ColourEncoder()


@pytest.fixture
def collection(tmp_path: Path) -> Manifest:
    """One picture a colour, with one to four captions; the grey one has none."""
    root = tmp_path / "pictures"
    root.mkdir()
    items = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (8, 8), colour).save(root / f"{name}.png")
        captions = tuple(f"a {name} square, {time}" for time in range(number + 1)) if name != "grey" else ()
        items.append(Item(name, f"{name}.png", sha256_of(root / f"{name}.png"), "test", captions))
    return Manifest(root, tuple(items))
