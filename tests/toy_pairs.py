"""Features on small real stores for fits: each encoder's embedding knows a part of what its tokens know."""

import dataclasses
import hashlib
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import normalize

from modalloy.data import Item, Manifest
from modalloy.encoders import Encoded, Encoder, Fingerprint
from modalloy.features import FeatureStore, extract
from modalloy.fusion import FeatureSet, PairedFeatures, TowerConfig, TowerFuser, input_shapes
from modalloy.training.fusion_training import FusionTraining

SPLITS = {"train": 48, "val": 24}
LATENT = 6
TOWERS = TowerConfig(token_dim=8, heads=2, dropout=0.1)
TRAINING = FusionTraining(
    epochs=3,
    batch_size=12,
    learning_rate=3e-3,
    similarity_learning_rate=0.05,
    momentum=0.9,
    queue_size=30,
)


class Noisy(Encoder):
    """Knows an item by its number alone: the tokens hold its latent vector, the embedding little of it."""

    modalities = ("image", "text")

    def __init__(self, number: int, weights: str = "a") -> None:
        self.number = number
        self.weights = weights
        self.name = self.spec = f"noisy-{number}"

    def fingerprint(self, modality):
        return Fingerprint(f"{self.spec} {modality}", "1", self.weights * 64, "b" * 64)

    def dim(self, modality):
        return 4 + self.number

    def width(self, modality):
        return LATENT + (self.number if modality == "image" else 1)

    def preprocess(self, modality, item):
        number = item.getpixel((0, 0))[0] if modality == "image" else int(item.split()[0])
        return torch.tensor(number)

    def forward(self, modality, prepared):
        embeddings, tokens = [], []
        for number in prepared:
            latent = torch.randn(LATENT, generator=torch.Generator().manual_seed(int(number)))
            own = torch.Generator().manual_seed(1000 * (1 + self.number) + int(number))
            if modality == "text":
                own.manual_seed(own.initial_seed() + 500_000)
            mixing = torch.Generator().manual_seed(self.number)
            shared = latent @ torch.randn(LATENT, self.dim(modality), generator=mixing)
            embeddings.append(shared + 3 * torch.randn(self.dim(modality), generator=own))
            spread = torch.randn(LATENT, self.width(modality), generator=mixing)
            count = 1 + int(number) % 3
            tokens.append((latent @ spread).expand(count, -1) * (torch.arange(count) + 1)[:, None])
        lengths = torch.tensor([len(each) for each in tokens])
        return Encoded(normalize(torch.stack(embeddings), dim=-1), torch.cat(tokens), lengths)


def collection(root: Path, splits: dict[str, int]) -> Manifest:
    """Two captions an image; train images 0 and 1, and 2 and 3, are of one family."""
    root.mkdir(parents=True, exist_ok=True)
    items = []
    for number, split in enumerate(split for split, count in splits.items() for _ in range(count)):
        path = root / f"{number}.png"
        Image.new("RGB", (2, 2), (number, 0, 0)).save(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        family = f"family {number // 2}" if number < 4 else None
        captions = (f"{number} first", f"{number} second")
        items.append(Item(str(number), path.name, sha256, split, captions, family))
    return Manifest(root, tuple(items))


def features(manifest: Manifest, folder: Path, weights: str = "a") -> PairedFeatures:
    sets = [
        FeatureSet(
            [extract(Noisy(k, weights), m, manifest, folder / f"{k}/{m}", workers=1, progress=False) for k in range(2)]
        )
        for m in ("image", "text")
    ]
    return PairedFeatures(manifest, *sets)


def new_fuser(paired: PairedFeatures, seed: int = 0, **changes) -> TowerFuser:
    torch.manual_seed(seed)
    return TowerFuser(dataclasses.replace(TOWERS, **changes), input_shapes(paired.image, paired.text))


def opened(manifest: Manifest, folder: Path) -> PairedFeatures:
    """The features that `features` has stored."""
    sets = [FeatureSet([FeatureStore.open(folder / f"{k}/{m}") for k in range(2)]) for m in ("image", "text")]
    return PairedFeatures(manifest, *sets)
