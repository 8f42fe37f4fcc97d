"""These need timm and a torchvision that fits torch; without them all but the messages is skipped."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from modalloy.encoders import load_encoder
from modalloy.encoders.check import check_encoder
from modalloy.encoders.hub.optional import optional_library
from modalloy.encoders.hub.timm import TimmEncoder
from modalloy.errors import CheckpointError, ConfigError

Draw = Callable[..., Image.Image]

MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_medium_patch16_gap_240": {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "resnet18": {},
    "mobilenetv3_small_050": {},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)},
}


def _timm() -> Any:
    try:
        return optional_library("timm", "timm")
    except ConfigError as error:
        pytest.skip(str(error))


def _save(folder: Path, name: str = "vit_tiny_patch16_224", **changes: Any) -> Any:
    timm = _timm()
    from timm.models import save_for_hf

    torch.manual_seed(0)
    arguments = MODELS[name]
    model = timm.create_model(name, num_classes=5, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    side = arguments.get("img_size", 224)
    data = {"input_size": (3, side, side), "crop_pct": 0.8, "interpolation": "bilinear", **changes}
    config = {**model.pretrained_cfg, **data}
    save_for_hf(
        model, str(folder), model_config={"pretrained_cfg": config}, model_args=arguments, safe_serialization=True
    )
    return model


@pytest.mark.parametrize("name", MODELS)
def test_features_are_timm_s_own(name: str, tmp_path: Path, picture: Draw) -> None:
    model = _save(tmp_path / "model", name)
    timm = _timm()
    encoder = load_encoder(f"timm:{tmp_path / 'model'}")
    pictures = [picture(1, 90, 120), picture(2, 240, 230)]
    side = MODELS[name].get("img_size", 224)
    transform = timm.data.create_transform(
        (3, side, side),
        interpolation="bilinear",
        crop_pct=0.8,
        mean=model.pretrained_cfg["mean"],
        std=model.pretrained_cfg["std"],
    )
    with torch.no_grad():
        features = model.forward_features(torch.stack([transform(each) for each in pictures]))
        pooled = model.forward_head(features, pre_logits=True)
    encoded = encoder.encode_images(pictures)
    torch.testing.assert_close(encoded.embedding, F.normalize(pooled, dim=-1), rtol=1e-4, atol=1e-5)
    first = torch.stack([tokens[0] for tokens in encoded.tokens_of_each()])
    if name == "vit_tiny_patch16_224":
        tokens, summary = features, features[:, 0]
    else:
        tokens = features if features.ndim == 3 else features.flatten(1, 2)
        if features.ndim == 4 and "swin" not in name:
            tokens = features.permute(0, 2, 3, 1).flatten(1, 2)
        summary = tokens.mean(dim=1) if name.startswith("mobilenet") else pooled
    torch.testing.assert_close(first, summary, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(encoded.tokens_of_each(), tokens, strict=True):
        torch.testing.assert_close(ours[-len(theirs) :], theirs, rtol=1e-4, atol=1e-5)
    check_encoder(encoder)


def test_preprocessing_is_in_the_fingerprint(tmp_path: Path) -> None:
    _save(tmp_path / "one")
    _save(tmp_path / "two", crop_pct=1.0)
    one, two = (load_encoder(f"timm:{tmp_path / name}").fingerprint("image") for name in ("one", "two"))
    assert one.weights_sha256 == two.weights_sha256
    assert one.preprocessing_sha256 != two.preprocessing_sha256


def test_bad_models_are_refused(tmp_path: Path) -> None:
    _save(tmp_path / "model")
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "model" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="can't be loaded"):
        load_encoder(f"timm:{tmp_path / 'model'}")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="holds no weights"):
        load_encoder(f"timm:{tmp_path / 'model'}")


def test_the_library_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm can't be loaded: .*pip install 'modalloy\[timm\]' with a torchvision"):
        TimmEncoder("timm", "resnet18")


def test_a_torchvision_that_does_not_fit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ConfigError, match="operator torchvision::nms does not exist; pip install"):
        TimmEncoder("timm", "resnet18")
