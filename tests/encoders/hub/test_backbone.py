"""Unimodal backbones against the library's own calls, one item at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoders.hub import families
from encoders.hub.backbones import IMAGES, POOLED, TEXT, TEXT_CONFIGS, save_backbone
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from modalloy.encoders import Encoder, load_encoder
from modalloy.encoders.check import check_encoder
from modalloy.encoders.hub.backbone import ImageBackbone
from modalloy.errors import ConfigError

Draw = Callable[..., Image.Image]
TEXTS = ["A Red phone", "the old dog runs with a small blue telephone", "cat"]


@pytest.fixture(scope="module")
def image_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("image-backbones")
    return {name: save_backbone(folder / name, name) for name in IMAGES}


@pytest.fixture(scope="module")
def text_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("text-backbones")
    return {name: save_backbone(folder / name, name) for name in TEXT_CONFIGS}


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_the_library_s(name: str, image_folders: dict[str, Path], picture: Draw) -> None:
    folder, kind = image_folders[name], IMAGES[name][0]
    encoder = load_encoder(f"{kind}:{folder}")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    images = [picture(0), picture(1, 90, 40), picture(2, 30, 77)]
    encoded = encoder.encode_images(images)
    _close(encoder.encode_images(images, batch_size=1).tokens, encoded.tokens)
    assert encoder.modalities == ("image",)
    for image, tokens, embedding in zip(images, encoded.tokens_of_each(), encoded.embedding, strict=True):
        with torch.no_grad():
            given = model(**processor(images=image, return_tensors="pt"))
        hidden = given.last_hidden_state[0]
        if kind == "convnext":
            _close(tokens[0], model.layernorm(hidden.mean(dim=(1, 2))).detach())
            _close(embedding, F.normalize(given.pooler_output[0], dim=-1))
            hidden = torch.stack([tokens[0], *(hidden[:, row, column] for row in range(2) for column in range(2))])
        else:
            _close(embedding, F.normalize(hidden[0], dim=-1))
            if name == "registers":
                hidden = torch.cat([hidden[:1], hidden[5:]])
        _close(tokens, hidden)
    assert encoder.token_grid() == ((2, 2) if kind == "convnext" else (8, 8))
    assert encoder.dim("image") == encoder.width("image") == 32
    check_encoder(encoder)


@pytest.mark.parametrize("name", TEXT_CONFIGS)
def test_texts_are_the_library_s(name: str, text_folders: dict[str, Path]) -> None:
    folder = text_folders[name]
    encoder = load_encoder(f"bert:{folder}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    encoded = encoder.encode_texts(TEXTS)
    _close(encoder.encode_texts(TEXTS, batch_size=1).tokens, encoded.tokens)
    assert encoder.modalities == ("text",)
    for text, tokens, embedding in zip(TEXTS, encoded.tokens_of_each(), encoded.embedding, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            given = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        hidden = given.last_hidden_state[0]
        if name in POOLED:
            _close(embedding, F.normalize(given.pooler_output[0], dim=-1))
        else:
            _close(embedding, F.normalize(hidden.mean(dim=0), dim=-1))
            hidden = torch.stack([hidden.mean(dim=0), *hidden])
        _close(tokens, hidden)
    pieces = encoder.token_texts(TEXTS[1])
    assert pieces is not None
    assert len(pieces) == encoded.lengths[1]
    check_encoder(encoder)


@pytest.mark.parametrize("name", IMAGES)
def test_mid_tokens_of_images_are_an_earlier_layer_s(name: str, image_folders: dict[str, Path], picture: Draw) -> None:
    folder, kind = image_folders[name], IMAGES[name][0]
    encoder = load_encoder(f"mid:{kind}:{folder}")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        given = model(**processor(images=picture(0), return_tensors="pt"), output_hidden_states=True)
        hidden = given.hidden_states[3 if kind == "convnext" else 1][0]
        expected = hidden if kind == "convnext" else model.layernorm(hidden)
    if kind == "convnext":
        assert hidden.shape == (16, 4, 4)
        expected = torch.cat([hidden.mean((1, 2))[None], hidden.flatten(1).T])
    elif name == "registers":
        expected = torch.cat([expected[:1], expected[5:]])
    encoded = encoder.encode_images([picture(0)])
    _close(encoded.tokens, expected)
    _close(encoded.embedding[0], F.normalize(expected[0], dim=0))
    check_encoder(encoder)


@pytest.mark.parametrize("name", TEXT_CONFIGS)
def test_mid_tokens_of_texts_are_an_earlier_layer_s(name: str, text_folders: dict[str, Path]) -> None:
    encoder = load_encoder(f"mid:bert:{text_folders[name]}")
    inputs = transformers.AutoTokenizer.from_pretrained(text_folders[name])(TEXTS[1], return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(text_folders[name]).eval()
    with torch.no_grad():
        given = model(inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True)
    hidden = given.hidden_states[1][0]
    if name not in POOLED:
        hidden = torch.cat([hidden.mean(dim=0, keepdim=True), hidden])
    encoded = encoder.encode_texts(TEXTS)
    _close(encoded.tokens_of_each()[1], hidden)
    _close(encoded.embedding[1], F.normalize(hidden[0], dim=0))
    assert encoder.token_texts(TEXTS[1]) == load_encoder(f"bert:{text_folders[name]}").token_texts(TEXTS[1])
    check_encoder(encoder)


def test_of_twelve_layers_the_tenth_is_read_as_in_hacan(tmp_path: Path) -> None:
    config = transformers.BertConfig(**{**TEXT, "num_hidden_layers": 12})
    families.randomise(transformers.AutoModel.from_config(config)).save_pretrained(tmp_path)
    families.bert_tokenizer().save_pretrained(tmp_path)
    encoder: Any = load_encoder(f"bert:{tmp_path}")
    seen: list[torch.Tensor] = []
    encoder._network.encoder.layer[9].register_forward_hook(lambda *call: seen.append(call[2]))
    tokens = load_encoder(f"mid:bert:{tmp_path}").encode_texts(TEXTS[:1]).tokens
    encoder.encode_texts(TEXTS[:1])
    _close(tokens, seen[0][0])


def test_a_model_of_one_layer_has_no_mid_level(tmp_path: Path) -> None:
    config = transformers.BertConfig(**{**TEXT, "num_hidden_layers": 1})
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    families.bert_tokenizer().save_pretrained(tmp_path)
    encoder = load_encoder(f"bert:{tmp_path}")
    assert encoder.mid_layer("text") is None
    with pytest.raises(ConfigError, match="no second token level of texts"):
        encoder.forward_mid("text", [])
    with pytest.raises(ConfigError, match="no second token level of texts"):
        encoder.forward_levels("text", [], ["high", "mid"])


@pytest.mark.parametrize("name", TEXT_CONFIGS)
def test_a_long_text_is_cut_to_the_positions(name: str, text_folders: dict[str, Path]) -> None:
    encoder = load_encoder(f"bert:{text_folders[name]}")
    longest = 38 if name in ("roberta", "xlm-roberta", "mpnet") else 40
    assert encoder.encode_texts(["a " * 100]).lengths.tolist() == [longest + (name not in POOLED)]


def test_capitals_are_kept_for_a_cased_model(text_folders: dict[str, Path]) -> None:
    encoder = load_encoder(f"bert:{text_folders['bert']}")
    assert encoder.token_texts("A Red cat") == ["[CLS]", "A", "Red", "cat", "[SEP]"]
    cased, lower = encoder.encode_texts(["A Red cat", "a red cat"]).embedding
    assert (cased - lower).abs().max() > 1e-3


def _copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_without_a_trained_pooler_the_embedding_is_the_mean(text_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = _copy(text_folders["bert"], tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    pooled, mean = load_encoder(f"bert:{text_folders['bert']}"), load_encoder(f"bert:{folder}")
    words = pooled.encode_texts(TEXTS).tokens_of_each()
    encoded = mean.encode_texts(TEXTS)
    for hidden, tokens, embedding in zip(words, encoded.tokens_of_each(), encoded.embedding, strict=True):
        _close(tokens, torch.cat([hidden.mean(dim=0)[None], hidden]))
        _close(embedding, F.normalize(hidden.mean(dim=0), dim=-1))
    settings = [encoder.fingerprint("text").preprocessing_sha256 for encoder in (pooled, mean)]
    assert settings[0] != settings[1]


def test_a_sentence_encoder_is_averaged(text_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = _copy(text_folders["bert"], tmp_path / "sentences")
    (folder / "modules.json").write_text("[]")
    encoded = load_encoder(f"bert:{folder}").encode_texts(TEXTS)
    for tokens, embedding in zip(encoded.tokens_of_each(), encoded.embedding, strict=True):
        _close(tokens[0], tokens[1:].mean(dim=0))
        _close(embedding, F.normalize(tokens[0], dim=-1))


def test_the_backbone_of_a_whole_model_is_read(text_folders: dict[str, Path], tmp_path: Path) -> None:
    """As most checkpoints on the hub are saved: with a head, and without the pooler."""
    config = transformers.BertConfig.from_pretrained(text_folders["bert"])
    whole = families.randomise(transformers.BertForMaskedLM(config))
    whole.save_pretrained(tmp_path / "model")
    families.bert_tokenizer().save_pretrained(tmp_path / "model")
    encoder: Encoder = load_encoder(f"bert:{tmp_path / 'model'}")
    ids = families.bert_tokenizer()(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = whole.bert(ids).last_hidden_state[0]  # type: ignore[operator,union-attr]
    _close(encoder.encode_texts(TEXTS[:1]).tokens[1:], hidden)


def test_wrong_kinds(image_folders: dict[str, Path], text_folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="holds a model of type 'vit', but 'dinov2' takes 'dinov2' or"):
        load_encoder(f"dinov2:{image_folders['vit']}")
    with pytest.raises(ConfigError, match="holds a model of type 'convnext', but 'bert' takes 'bert' or"):
        load_encoder(f"bert:{image_folders['convnext']}")
    with pytest.raises(ConfigError, match="one of convnext, vit, dinov2, got 'resnet'"):
        ImageBackbone("resnet", "anywhere")
    encoder = load_encoder(f"bert:{text_folders['bert']}")
    with pytest.raises(ConfigError, match="encodes text, not image"):
        encoder.encode_images([Image.new("RGB", (8, 8))])
