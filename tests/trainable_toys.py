"""Backbones of a few parameters that can be trained, whose items are colours: small pictures and their numbers."""

import hashlib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from modalloy.data import Item, Manifest
from modalloy.encoders import Encoded, Encoder, Fingerprint, registry

MID, HIGH = 5, 7


class ToyNetwork(nn.Module):
    """Two layers, of which the first is the mid level."""

    def __init__(self) -> None:
        super().__init__()
        self.mid, self.high, self.dropout = nn.Linear(3, MID), nn.Linear(MID, HIGH), nn.Dropout(0.1)
        self.recompute = False
        self.calls = 0
        self.modes: list[bool] = []

    def forward(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.modes.append(self.training)
        mid = torch.tanh(self.mid(items))
        return (checkpoint(self._last, mid, use_reentrant=False) if self.recompute else self._last(mid)), mid

    def _last(self, mid: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.tanh(self.high(self.dropout(mid)))


class TrainableToy(Encoder):
    """A picture's four quarters, or a caption's three numbers, by a network; its spec is "toy:image" or "toy:text"."""

    def __init__(self, modality: str) -> None:
        self.modalities = (modality,)
        self.spec, self.name = f"toy:{modality}", f"toy of {modality}s"
        with torch.random.fork_rng():
            torch.manual_seed(len(modality))
            self._network = ToyNetwork().requires_grad_(False).eval()

    def fingerprint(self, modality):
        return Fingerprint(self.spec, "1", "a" * 64, "b" * 64)

    def dim(self, modality):
        return HIGH

    width = dim

    def preprocess(self, modality, item):
        if modality == "image":
            return torch.from_numpy(np.array(item.resize((2, 2)))).flatten(0, 1)
        numbers = [float(word) for word in item.split() if word.isdecimal()] or [0.0, 0.0, 0.0]
        return torch.diag(torch.tensor(numbers))

    def mid_layer(self, modality):
        return "first of 2"

    def network(self, modality):
        return self._network

    def recompute_activations(self, modality):
        self._network.recompute = True

    def forward_levels(self, modality, prepared, levels):
        items = torch.stack(list(prepared)).to(self.device) / 127.5
        made = dict(zip(("high", "mid"), self._network(items - 1 if modality == "image" else items), strict=True))
        return {level: _encoded(made[level]) for level in levels}

    @torch.no_grad()
    def forward(self, modality, prepared):
        return self.forward_levels(modality, prepared, ["high"])["high"]

    @torch.no_grad()
    def forward_mid(self, modality, prepared):
        return self.forward_levels(modality, prepared, ["mid"])["mid"]


def _encoded(tokens: torch.Tensor) -> Encoded:
    summary = tokens.mean(dim=1, keepdim=True)
    every = torch.cat([summary, tokens], dim=1)
    return Encoded(
        normalize(summary[:, 0].float(), dim=-1),
        every.flatten(0, 1),
        torch.full((len(tokens),), every.shape[1]),
    )


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `load_encoder("toy:image")` and `load_encoder("toy:text")` work."""
    others = registry.entry_points(group="modalloy.encoders")
    toys = EntryPoints([*others, EntryPoint("toy", "trainable_toys:TrainableToy", "modalloy.encoders")])
    monkeypatch.setattr(registry, "entry_points", lambda group: toys.select(group=group))


def colours(root: Path, splits: dict[str, int]) -> Manifest:
    """Pictures of one colour, each with two captions that give its numbers."""
    root.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    items = []
    for number, split in enumerate(split for split, count in splits.items() for _ in range(count)):
        red, green, blue = torch.randint(256, (3,), generator=generator).tolist()
        path = root / f"{number}.png"
        Image.new("RGB", (4, 4), (red, green, blue)).save(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        captions = (f"{red} {green} {blue}", f"{red} {green} {blue} again")
        items.append(Item(str(number), path.name, sha256, split, captions))
    return Manifest(root, tuple(items))
