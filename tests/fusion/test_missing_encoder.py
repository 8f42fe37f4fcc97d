"""What encoder dropout is for: an alloy that goes on working when an encoder's features are missing."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from modalloy.fusion import EncoderFeatures, InputShape, TowerConfig, TowerFuser

LATENT, ITEMS = 6, 64
SHAPES = [InputShape(4, 8, 7), InputShape(4, 6, 9)]
NOISE = (0.3, 0.1)


def views(latent: Tensor, modality: str, seed: int) -> list[EncoderFeatures]:
    """Each encoder sees the latent vectors in tokens of its own basis, the first one with more noise."""
    noise = torch.Generator().manual_seed(seed)
    inputs = []
    for position, (shape, scale) in enumerate(zip(SHAPES, NOISE, strict=True)):
        basis = torch.Generator().manual_seed(10 * position + (modality == "text"))
        tokens = latent @ torch.randn(LATENT, shape.width(modality), generator=basis)
        tokens = tokens[:, None] + scale * torch.randn(len(latent), 2, tokens.shape[1], generator=noise)
        embedding = torch.randn(len(latent), shape.dim, generator=noise)
        inputs.append(EncoderFeatures(normalize(embedding, dim=-1), tokens, torch.ones(len(latent), 2) > 0))
    return inputs


def trained(encoder_dropout: float) -> TowerFuser:
    """By contrast within the batch, on fresh pairs at each step."""
    config = TowerConfig(
        token_dim=8,
        heads=2,
        dropout=0.0,
        start="random",
        output_dim=12,
        read_embeddings=False,
        encoder_dropout=encoder_dropout,
    )
    torch.manual_seed(0)
    fuser = TowerFuser(config, SHAPES)
    optimizer = torch.optim.Adam(fuser.towers.parameters(), lr=5e-3)
    for step in range(100):
        latent = torch.randn(32, LATENT)
        image = fuser("image", views(latent, "image", 2 * step))
        text = fuser("text", views(latent, "text", 2 * step + 1))
        logits, target = image @ text.T / 0.1, torch.arange(32)
        optimizer.zero_grad()
        (cross_entropy(logits, target) + cross_entropy(logits.T, target)).backward()
        optimizer.step()
    return fuser.eval()


@torch.no_grad()
def recall(fuser: TowerFuser, lacking: int | None) -> float:
    """R@1 of fresh images by fresh texts, of which the images lack an encoder."""
    latent = torch.randn(ITEMS, LATENT, generator=torch.Generator().manual_seed(1))
    images, texts = views(latent, "image", 1_000_001), views(latent, "text", 1_000_002)
    if lacking is not None:
        images[lacking] = dataclasses.replace(images[lacking], present=torch.zeros(ITEMS, dtype=torch.bool))
    found = (fuser.embed("text", texts) @ fuser.embed("image", images).T).argmax(1)
    return (found == torch.arange(ITEMS)).float().mean().item()


@pytest.mark.slow
def test_with_encoder_dropout_an_alloy_does_without_either_encoder():
    without, with_dropout = trained(0.0), trained(0.3)
    assert recall(with_dropout, None) > 0.6
    for lacking in (0, 1):
        # By chance it is 1 / 64.
        assert recall(with_dropout, lacking) > max(0.3, recall(without, lacking) + 0.15)
