"""A local branch's levels as encoders of their own, against what the branch makes of the same tokens."""

from dataclasses import replace

import pytest
import torch
from align.test_encoder_local import CONFIG, SPECS, WIDTHS, made
from PIL import Image

from modalloy.align import LocalConfig, LocalLevel
from modalloy.encoders import load_encoder
from modalloy.encoders.check import check_encoder
from modalloy.errors import ConfigError


@pytest.fixture(scope="module")
def models():
    return {modality: load_encoder(spec) for modality, spec in SPECS.items()}


@pytest.mark.parametrize("level", ["high", "mid"])
def test_its_tokens_are_the_backbone_s_mapped_by_the_branch(models, level):
    encoder = made(models, local=CONFIG)
    mapped = LocalLevel(encoder, level)
    noise = torch.randint(256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for modality, items in (
        ("image", [Image.fromarray(each.numpy()) for each in noise]),
        ("text", ["a red telephone", "dogs"]),
    ):
        prepared = [mapped.preprocess(modality, item) for item in items]
        tokens = encoder.backbone(modality, level).forward(modality, prepared)
        found = mapped.forward(modality, prepared)
        branch = encoder.project_tokens(modality, {level: (tokens.tokens, tokens.lengths)})[level]
        for each, values, mask, embedding in zip(
            found.tokens_of_each(), branch.values, branch.mask, found.embedding, strict=True
        ):
            # The branch compares regions without the summary, which is kept in its place.
            torch.testing.assert_close(each[1:] if modality == "image" else each, values[mask])
            torch.testing.assert_close(embedding, each[0] / each[0].norm())


def test_it_is_an_encoder_like_any_other(models):
    mapped = LocalLevel(made(models, local=CONFIG), "mid")
    assert mapped.width("image") == mapped.dim("text") == 8
    check_encoder(mapped)


def test_its_fingerprint_tells_the_map_and_what_is_mapped(models):
    def digest(level="high", modality="image", **options) -> str:
        return LocalLevel(made(models, **{"local": CONFIG, **options}), level).fingerprint(modality).digest

    known = digest()
    assert known == digest()
    # How tokens attend to each other, and other levels, have no part in what the tokens are.
    assert known == digest(local=LocalConfig(*WIDTHS, dim=8))
    different = [digest("mid"), digest(modality="text"), digest(seed=1), digest(local=replace(CONFIG, dim=6))]
    other = made(models, local=CONFIG)
    recorded = other.backbones["image"]
    other.backbones["image"] = replace(recorded, fingerprint=replace(recorded.fingerprint, weights_sha256="0" * 64))
    different.append(LocalLevel(other, "high").fingerprint("image").digest)
    assert len({known, *different}) == 6


def test_it_needs_a_local_branch_that_reads_the_level(models):
    with pytest.raises(ConfigError, match=r"has no local branch; align with one"):
        LocalLevel(made(models), "high")
    last = LocalConfig(WIDTHS[0], None, WIDTHS[2], None, dim=8)
    with pytest.raises(ConfigError, match="reads no mid level, only the last tokens"):
        LocalLevel(made(models, local=last, mid=False), "mid")
    assert LocalLevel(made(models, local=last, mid=False), "high").modalities == ("image", "text")
