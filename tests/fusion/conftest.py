"""Small dual encoders over colours, a collection of coloured pictures, and random features."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from modalloy.data import Item, Manifest
from modalloy.encoders import Encoded, Encoder, Fingerprint, Modality
from modalloy.errors import DataError
from modalloy.features import extract
from modalloy.files import read_json, write_json
from modalloy.fusion import EncoderFeatures, FeatureSet, PairedFeatures


class Colours(Encoder):
    """Fixed random waves over a picture's colour, or over the three numbers in a caption; one to four tokens.

    `number` decides its widths and waves. Saved, it is loaded again by its folder.
    """

    modalities: tuple[Modality, ...] = ("image", "text")

    def __init__(self, number: int, weights: str = "a") -> None:
        self.number = number
        self.weights = weights
        self.name = f"Colours {number}"
        self.spec = f"colours-{number}"
        generator = torch.Generator().manual_seed(number)
        self._embed = torch.randn(3, 3 + number, generator=generator)
        self._token = {m: torch.randn(3, self.width(m), generator=generator) for m in self.modalities}

    def fingerprint(self, modality: Modality) -> Fingerprint:
        return Fingerprint(f"colours {self.number} {modality}", "1", self.weights * 64, "b" * 64)

    def dim(self, modality: Modality) -> int:
        return 3 + self.number

    def width(self, modality: Modality) -> int:
        return (2 if modality == "image" else 4) + self.number

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
        if isinstance(item, Image.Image):
            return torch.tensor(item.getpixel((0, 0))) / 127.5 - 1
        if "refused" in item:
            raise DataError("this caption is refused")
        return torch.tensor([int(word) for word in item.split()[:3]]) / 127.5 - 1

    def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
        colours = torch.stack(list(prepared))
        lengths = (colours.sum(1) * 99).long() % 4 + 1
        tokens = [
            (colour * (torch.arange(int(length)) + 1)[:, None]) @ self._token[modality]
            for colour, length in zip(colours, lengths, strict=True)
        ]
        embedding = nn.functional.normalize((colours @ self._embed).cos(), dim=-1)
        return Encoded(embedding, torch.cat(tokens), lengths)

    def save(self, folder: Path) -> None:
        write_json(folder / "colours.json", {"number": self.number, "weights": self.weights})
        self.spec = f"colours:{folder.resolve()}"

    @classmethod
    def load(cls, folder: str) -> "Colours":
        encoder = cls(**read_json(Path(folder) / "colours.json"))
        encoder.spec = f"colours:{folder}"
        return encoder


def colour_collection(
    root: Path,
    splits: dict[str, int],
    captions: int = 2,
    corrupt: Sequence[int] = (),
    refused: Sequence[int] = (),
) -> Manifest:
    """Pictures of one colour each; some are no pictures, of some the last caption can't be encoded."""
    root.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    items = []
    for number, split in enumerate(split for split, count in splits.items() for _ in range(count)):
        colour = tuple(torch.randint(256, (3,), generator=generator).tolist())
        path = root / f"{number}.png"
        Image.new("RGB", (2, 2), colour).save(path)
        if number in corrupt:
            path.write_bytes(b"no picture")
        texts = [f"{' '.join(map(str, colour))} in words {k}" for k in range(captions)]
        if number in refused:
            texts[-1] = f"refused {number}"
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        items.append(Item(str(number), path.name, sha256, split, tuple(texts)))
    return Manifest(root, tuple(items))


def stored(manifest: Manifest, folder: Path, encoders: Sequence[Encoder], modality: Modality) -> FeatureSet:
    return FeatureSet(
        [
            extract(each, modality, manifest, folder / str(k) / modality, workers=1, progress=False)
            for k, each in enumerate(encoders)
        ]
    )


def paired_features(manifest: Manifest, folder: Path, encoders: Sequence[Encoder]) -> PairedFeatures:
    return PairedFeatures(
        manifest, stored(manifest, folder, encoders, "image"), stored(manifest, folder, encoders, "text")
    )


def random_features(
    batch: int, dim: int, width: int, *, longest: int = 4, seed: int = 0, scale: float = 1.0
) -> EncoderFeatures:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (batch,), generator=generator)
    lengths[0] = longest
    return EncoderFeatures(
        nn.functional.normalize(torch.randn(batch, dim, generator=generator), dim=-1),
        scale * torch.randn(batch, longest, width, generator=generator),
        torch.arange(longest) < lengths[:, None],
    )


@pytest.fixture(scope="session")
def make_encoder() -> type[Colours]:
    return Colours


@pytest.fixture(scope="session")
def make_collection() -> Callable[..., Manifest]:
    return colour_collection


@pytest.fixture(scope="session")
def make_feature_set() -> Callable[..., FeatureSet]:
    return stored


@pytest.fixture(scope="session")
def make_paired() -> Callable[..., PairedFeatures]:
    return paired_features


@pytest.fixture(scope="session")
def make_features() -> Callable[..., EncoderFeatures]:
    return random_features
