"""Encoders that know an item by its number, and collections of numbered pictures, where it is known what helps."""

import hashlib
from collections.abc import Container
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import normalize

from modalloy import Collection
from modalloy.data import Item, Manifest
from modalloy.encoders import Encoded, Encoder, Fingerprint
from modalloy.workflow.features import ExtractConfig

LATENT = 6


class Toy(Encoder):
    """Its embedding shows an item's latent vector with noise; its tokens show it in full, or nothing.

    Args:
        number: decides its widths, its noise and how it mixes the latent vector.
        noise: of the embedding, per number of the latent vector.
        telling: whether the tokens show the latent vector.
        known: numbers of items that it was fitted on, so that their embeddings are hardly noisy.
    """

    modalities = ("image", "text")

    def __init__(
        self, number: int, noise: float = 1.0, telling: bool = True, known: Container[int] = frozenset()
    ) -> None:
        self.number, self.noise, self.telling, self.known = number, noise, telling, known
        self.name = self.spec = f"toy-{number}"

    def fingerprint(self, modality):
        return Fingerprint(f"{self.spec} {modality} {self.noise} {self.telling}", "1", "a" * 64, "b" * 64)

    def dim(self, modality):
        return LATENT + self.number

    def width(self, modality):
        return LATENT + (self.number if modality == "image" else 1)

    def preprocess(self, modality, item):
        if modality == "image":
            low, high, _ = item.getpixel((0, 0))
            return torch.tensor(low + 256 * high)
        return torch.tensor(int(item.split()[0]))

    def spread(self, modality) -> torch.Tensor:
        """How tokens are made of the latent vector."""
        mixing = torch.Generator().manual_seed(10 * self.number + len(modality))
        return torch.randn(LATENT, self.width(modality), generator=mixing)

    def forward(self, modality, prepared):
        mixing = torch.Generator().manual_seed(self.number)
        frame, _ = torch.linalg.qr(torch.randn(self.dim(modality), LATENT, generator=mixing))
        spread = self.spread(modality)
        embeddings, tokens = [], []
        for number in map(int, prepared):
            latent = torch.randn(LATENT, generator=torch.Generator().manual_seed(number))
            own = torch.Generator().manual_seed(10_000 * (2 * self.number + (modality == "text")) + 1000 + number)
            noise = 0.1 if number in self.known else self.noise
            embeddings.append(frame @ (latent + noise * torch.randn(LATENT, generator=own)))
            shown = latent if self.telling else torch.randn(LATENT, generator=own)
            tokens.append(shown @ spread)
        lengths = torch.ones(len(tokens), dtype=torch.int64)
        return Encoded(normalize(torch.stack(embeddings), dim=-1), torch.stack(tokens), lengths)


def toy_manifest(root: Path, splits: dict[str, int], captions: int = 2) -> Manifest:
    """Pictures and captions that show their number, from 0, in the order of the splits."""
    root.mkdir(parents=True, exist_ok=True)
    items = []
    for number, split in enumerate(split for split, count in splits.items() for _ in range(count)):
        path = root / f"{number}.png"
        Image.new("RGB", (1, 1), (number % 256, number // 256, 0)).save(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        texts = tuple(f"{number} in words {place}" for place in range(captions))
        items.append(Item(str(number), path.name, sha256, split, texts))
    return Manifest(root, tuple(items))


def toy_pairs(root: Path, splits: dict[str, int], captions: int = 2) -> Collection:
    """A collection of them, whose features go beside the pictures."""
    return Collection(toy_manifest(root / "pictures", splits, captions), root / "features", ExtractConfig(workers=1))
