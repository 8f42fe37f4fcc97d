"""An aligned encoder's local branch: kept with it, part of its fingerprint, and what it makes of stored tokens."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from modalloy.align import (
    AlignedEncoder,
    Backbone,
    CrossAttention,
    GlobalHead,
    HeadConfig,
    LocalBranch,
    LocalConfig,
    cross_layer_similarity,
)
from modalloy.encoders import Encoder, Level, Modality, load_encoder
from modalloy.encoders.mid import MidLevel
from modalloy.errors import CheckpointError, ConfigError, DataError

SPECS: dict[Modality, str] = {"image": "efficientnet-lite0@64", "text": "minilm@16"}
WIDTHS = (1280, 112, 384, 384)


@pytest.fixture(scope="module")
def models() -> dict[Modality, Encoder]:
    return {modality: load_encoder(spec) for modality, spec in SPECS.items()}


def made(models: dict[Modality, Encoder], seed: int = 0, local: LocalConfig | None = None, mid: bool = True):
    torch.manual_seed(0)
    heads = {m: GlobalHead(HeadConfig(model.width(m), (4,))) for m, model in models.items()}
    torch.manual_seed(seed)
    return AlignedEncoder(
        {m: Backbone.of(model, m) for m, model in models.items()},
        heads,
        local=None if local is None else LocalBranch(local),
        mid={m: Backbone.of(MidLevel(model), m) for m, model in models.items()} if mid else None,
    )


CONFIG = LocalConfig(*WIDTHS, dim=8, attention=CrossAttention("i2t", "equal"))


def test_it_is_saved_and_loaded(models, tmp_path):
    encoder = made(models, local=CONFIG)
    encoder.save(tmp_path / "run")
    loaded = AlignedEncoder.from_pretrained(tmp_path / "run")
    assert loaded.local.config == CONFIG
    assert loaded.mid == encoder.mid
    assert loaded.mid["image"].spec == "mid:efficientnet-lite0@64"
    for name, weight in encoder.local.state_dict().items():
        assert torch.equal(loaded.local.state_dict()[name], weight)
    assert not any(parameter.requires_grad for parameter in loaded.local.parameters())
    assert [loaded.fingerprint(m) for m in SPECS] == [encoder.fingerprint(m) for m in SPECS]


def test_it_is_part_of_the_fingerprint_only_where_there_is_one(models):
    def digest(**options) -> str:
        return made(models, **options).fingerprint("image").digest

    without = digest(mid=False)
    assert without == digest(mid=False, seed=1)
    other = LocalConfig(*WIDTHS, dim=8)
    found = [without, digest(local=CONFIG), digest(local=CONFIG, seed=1), digest(local=other)]
    assert len(set(found)) == 4
    assert digest(local=CONFIG) == found[1]


def test_scores_from_stored_tokens_are_the_branch_s(models, tmp_path):
    encoder = made(models, local=CONFIG)
    encoder.save(tmp_path)
    loaded = AlignedEncoder.from_pretrained(tmp_path)
    noise = torch.randint(256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures, texts = [Image.fromarray(each.numpy()) for each in noise], ["a red telephone", "dogs"]
    projected, plain = [], []
    for modality, items in (("image", pictures), ("text", texts)):
        features: dict[Level, tuple[Tensor, Tensor]] = {}
        for level in ("high", "mid"):
            encoded = getattr(loaded.backbone(modality, level), f"encode_{modality}s")(items)
            features[level] = (encoded.tokens.half(), encoded.lengths)
        projected.append(loaded.project_tokens(modality, features))
        of_each = {level: tokens.float().split(lengths.tolist()) for level, (tokens, lengths) in features.items()}
        plain.append([{level: items[row] for level, items in of_each.items()} for row in range(2)])
    scores = cross_layer_similarity(*projected, CONFIG.attention)
    for i, image in enumerate(plain[0]):
        for c, caption in enumerate(plain[1]):
            maps = {name: getattr(encoder.local, name) for name in ("image_high", "image_mid", "text_high", "text_mid")}
            regions = {level: maps[f"image_{level}"](image[level][1:]) for level in image}
            words = {level: maps[f"text_{level}"](caption[level]) for level in caption}
            expected = (
                scan_i2t(regions["high"], words["high"], equal=True)
                + scan_i2t(regions["high"], words["mid"])
                + scan_i2t(regions["mid"], words["high"])
            )
            torch.testing.assert_close(scores[i, c], expected, atol=1e-4, rtol=1e-4)


def scan_i2t(regions: Tensor, words: Tensor, equal: bool = False) -> Tensor:
    """SCAN of one image and one caption, as the paper has it: each region attends to the words."""
    affinity = torch.nn.functional.leaky_relu(words @ regions.T, 0.1)
    weights = (9 * affinity / (affinity.norm(dim=1, keepdim=True) + 1e-8)).softmax(0)
    if equal:
        weights = weights * (len(words) * weights > weights.sum(0))
        weights = weights / weights.sum(0)
    return torch.cosine_similarity(regions, weights.T @ words, dim=1).mean()


def test_the_mid_level_shares_the_backbone_and_is_checked(models, tmp_path):
    encoder = made(models, local=CONFIG)
    assert encoder.backbone("text", "mid").model is encoder.backbone("text")
    encoder.mid["image"] = Backbone("mid:x", models["image"].fingerprint("image"), 112)
    with pytest.raises(CheckpointError, match="bring back the encoder"):
        encoder.backbone("image", "mid")
    with pytest.raises(ConfigError, match="reads no mid level of images"):
        made(models, mid=False).backbone("image", "mid")


def test_what_does_not_fit_is_refused(models, tmp_path: Path):
    with pytest.raises(ConfigError, match="image tokens of the level 'mid' that are 7 wide, got 112"):
        made(models, local=LocalConfig(1280, 7, 384, 384))
    with pytest.raises(ConfigError, match="text tokens of the level 'mid' that are 384 wide, got None"):
        made(models, local=LocalConfig(1280, None, 384, 384), mid=False)
    with pytest.raises(ConfigError, match="has no local branch"):
        made(models, mid=False).project_tokens("image", {})
    with pytest.raises(DataError, match="without the images' level 'mid'"):
        encoder = made(models, local=LocalConfig(1280, None, 384, None), mid=False)
        encoder.project_tokens("image", {"mid": (torch.zeros(2, 112), torch.tensor([2]))})
    made(models, local=CONFIG).save(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"direction": "i2t"', '"direction": "both"'))
    with pytest.raises(CheckpointError, match="isn't whole"):
        AlignedEncoder.from_pretrained(tmp_path)
