"""These need open_clip and a torchvision that fits torch; without them all but the messages is skipped."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from modalloy.encoders import load_encoder
from modalloy.encoders.check import check_encoder
from modalloy.encoders.hub.open_clip import OpenClipEncoder, _Texts
from modalloy.encoders.hub.optional import optional_library
from modalloy.errors import CheckpointError, ConfigError, DataError

Draw = Callable[..., Image.Image]
TEXTS = ["a red phone!", "The big old house on a cat", "dog"]
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {**VISION, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        "text_cfg": TEXT,
    },
    "custom-text": {
        "embed_dim": 24,
        "vision_cfg": {**VISION, "pool_type": "avg"},
        "text_cfg": {**TEXT, "pool_type": "last", "no_causal_mask": True},
        "custom_text": True,
    },
    "timm": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "resnet18", "image_size": 32, "timm_proj": "linear", "timm_pool": "avg"},
        "text_cfg": TEXT,
    },
}


def _open_clip() -> Any:
    try:
        return optional_library("open_clip", "open-clip")
    except ConfigError as error:
        pytest.skip(str(error))


def _save(folder: Path, name: str = "vit", **preprocessing: Any) -> Any:
    library = _open_clip()
    folder.mkdir()
    preprocess = {"interpolation": "bilinear", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], **preprocessing}
    config = {"model_cfg": CONFIGS[name], "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = library.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_embeddings_are_open_clip_s_own(name: str, tmp_path: Path, picture: Draw) -> None:
    _save(tmp_path / "model", name)
    library = _open_clip()
    encoder = load_encoder(f"open-clip:{tmp_path / 'model'}")
    model, transform = library.create_model_from_pretrained(f"local-dir:{tmp_path / 'model'}")
    model.eval()
    pictures = [picture(1, 90, 120), picture(2, 64, 60)]
    tokenizer = library.get_tokenizer(f"local-dir:{tmp_path / 'model'}")
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(each) for each in pictures]))
        texts = model.encode_text(tokenizer(TEXTS))
    encoded = encoder.encode_images(pictures)
    torch.testing.assert_close(encoded.embedding, F.normalize(images, dim=-1), rtol=1e-4, atol=1e-5)
    encoded_texts = encoder.encode_texts(TEXTS)
    torch.testing.assert_close(encoded_texts.embedding, F.normalize(texts, dim=-1), rtol=1e-4, atol=1e-5)
    real = [len(tokenizer.encode(text)) + 2 for text in TEXTS]
    assert encoded_texts.lengths.tolist() == [1 + count for count in real]
    if name in ("vit", "resnet"):
        # The summary is what the projection makes the embedding of.
        summaries = torch.stack([tokens[0] for tokens in encoded_texts.tokens_of_each()])
        torch.testing.assert_close(summaries @ model.text_projection, texts, rtol=1e-4, atol=1e-4)
    if name == "vit":
        summaries = torch.stack([tokens[0] for tokens in encoded.tokens_of_each()])
        torch.testing.assert_close(summaries @ model.visual.proj, images, rtol=1e-4, atol=1e-4)
        model.visual.output_tokens = True
        with torch.no_grad():
            _, tokens = model.visual(torch.stack([transform(each) for each in pictures]))
        torch.testing.assert_close(encoded.tokens_of_each()[1][1:], tokens[1], rtol=1e-4, atol=1e-5)
        assert encoder.token_grid() == (4, 4)
    assert encoder.token_texts("a dog") == ["[summary]", "<start_of_text>", "a</w>", "dog</w>", "<end_of_text>"]
    check_encoder(encoder)


def test_a_model_and_weights_that_open_clip_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path / "model")
    library = _open_clip()
    (tmp_path / "Tiny-8.json").write_text(json.dumps(CONFIGS["vit"]))
    library.add_model_config(tmp_path / "Tiny-8.json")
    # As the hub's cache has it.
    weights = tmp_path / "snapshots" / "c0ffee" / "open_clip_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes((tmp_path / "model" / "open_clip_model.safetensors").read_bytes())
    listed = {"hf_hub": "nobody/nothing/", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": "bilinear"}
    for module in (library, library.factory):
        monkeypatch.setattr(
            module, "get_pretrained_cfg", lambda name, tag: listed if (name, tag) == ("Tiny-8", "laion") else {}
        )
        monkeypatch.setattr(module, "download_pretrained", lambda found, **_: str(weights))
    encoder = load_encoder("open-clip:Tiny-8/laion")
    folder = load_encoder(f"open-clip:{tmp_path / 'model'}")
    torch.testing.assert_close(encoder.encode_texts(TEXTS).embedding, folder.encode_texts(TEXTS).embedding)
    picture = Image.linear_gradient("L").convert("RGB")
    torch.testing.assert_close(encoder.encode_images([picture]).embedding, folder.encode_images([picture]).embedding)
    ours, theirs = encoder.fingerprint("image"), folder.fingerprint("image")
    assert (ours.name, ours.revision) == ("open-clip:Tiny-8/laion image", "c0ffee")
    assert ours.weights_sha256 == theirs.weights_sha256


def test_preprocessing_is_in_the_fingerprint(tmp_path: Path) -> None:
    _save(tmp_path / "one")
    _save(tmp_path / "two", interpolation="bicubic")
    one, two = (load_encoder(f"open-clip:{tmp_path / name}") for name in ("one", "two"))
    assert one.fingerprint("image").weights_sha256 == two.fingerprint("image").weights_sha256
    assert one.fingerprint("image").preprocessing_sha256 != two.fingerprint("image").preprocessing_sha256
    assert one.fingerprint("text").preprocessing_sha256 == two.fingerprint("text").preprocessing_sha256


def test_bad_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path / "model")
    (tmp_path / "model" / "open_clip_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="can't be loaded"):
        load_encoder(f"open-clip:{tmp_path / 'model'}")
    (tmp_path / "model" / "open_clip_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds no weights \(open_clip_model.safetensors"):
        load_encoder(f"open-clip:{tmp_path / 'model'}")


def test_the_library_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(
        ConfigError, match=r"open_clip can't be loaded: .*pip install 'modalloy\[open-clip\]' with a torchvision"
    ):
        OpenClipEncoder("open-clip", "ViT-B-32/openai")


def test_a_text_of_which_the_tokenizer_leaves_nothing_is_refused() -> None:
    class Tokenizer:
        context_length = 4

        def __call__(self, texts: list[str]) -> torch.Tensor:
            return torch.zeros(len(texts), 4, dtype=torch.long)  # as one that takes punctuation out does with "?!"

    with pytest.raises(DataError, match=r"that the model's tokenizer knows, got '\?!'"):
        _Texts(Tokenizer())("?!")
