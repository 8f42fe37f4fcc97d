import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from encoders.hub import models
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from modalloy.encoders import load_encoder
from modalloy.encoders.check import check_encoder
from modalloy.encoders.hub.sentence_transformers import SentenceTransformersEncoder
from modalloy.errors import CheckpointError, ConfigError, DataError

library = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.models")

Draw = Callable[..., Image.Image]
COMMIT = "c0ffee" + 34 * "0"
TEXTS = ["a red phone", "The big old house on a cat", "dog", "A BLUE telephone runs with the small phone of an old dog"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of transformers."""
    tokenizer = models.word_tokenizer(pad="[PAD]", begin="[CLS]", end="[SEP]")
    config = transformers.BertConfig(**models.TOWER, vocab_size=len(tokenizer), max_position_embeddings=40)
    return models.save(tmp_path_factory.mktemp("bert"), transformers.BertModel, config, tokenizer, None, 0)


def _save(bert: Path, folder: Path, pooling: str = "mean", dense: int = 0, **settings: object) -> Path:
    transformer = modules.Transformer(str(bert))
    parts = [transformer, modules.Pooling(32, pooling_mode=pooling)]
    if dense:
        torch.manual_seed(1)
        parts.append(modules.Dense(32, dense))
    library.SentenceTransformer(modules=[*parts, modules.Normalize()], device="cpu", **settings).save_pretrained(
        str(folder), create_model_card=False
    )
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_text_embeddings_and_tokens_are_those_of_encode(bert: Path, tmp_path: Path, pooling: str) -> None:
    encoder = load_encoder(f"sentence-transformers:{_save(bert, tmp_path / 'model', pooling)}")
    own = library.SentenceTransformer(str(tmp_path / "model"), device="cpu", local_files_only=True)
    encoded = encoder.encode_texts(TEXTS)
    assert encoder.modalities == ("text",)
    torch.testing.assert_close(encoded.embedding, own.encode(TEXTS, convert_to_tensor=True))
    for tokens, expected in zip(
        encoded.tokens_of_each(), own.encode(TEXTS, output_value="token_embeddings"), strict=True
    ):
        summary = {"mean": expected.mean(dim=0), "cls": expected[0], "max": expected.amax(dim=0)}[pooling]
        torch.testing.assert_close(tokens[0], summary)
        torch.testing.assert_close(tokens[-len(expected) :], expected)
        assert len(tokens) == len(expected) + (pooling != "cls")
    check_encoder(encoder, texts=TEXTS)


def test_a_dense_layer_after_the_pooling_changes_the_embedding_alone(bert: Path, tmp_path: Path) -> None:
    encoder = load_encoder(f"sentence-transformers:{_save(bert, tmp_path / 'model', dense=8)}")
    assert (encoder.dim("text"), encoder.width("text")) == (8, 32)
    own = library.SentenceTransformer(str(tmp_path / "model"), device="cpu", local_files_only=True)
    torch.testing.assert_close(encoder.encode_texts(TEXTS).embedding, own.encode(TEXTS, convert_to_tensor=True))
    check_encoder(encoder)


def test_the_default_prompt_of_a_model_is_used(bert: Path, tmp_path: Path) -> None:
    plain = load_encoder(f"sentence-transformers:{_save(bert, tmp_path / 'plain')}")
    prompts = {"query": "the big "}
    folder = _save(bert, tmp_path / "prompted", prompts=prompts, default_prompt_name="query")
    prompted = load_encoder(f"sentence-transformers:{folder}")
    texts = ["a dog", "red phone"]
    torch.testing.assert_close(
        prompted.encode_texts(texts).embedding, plain.encode_texts(["the big " + text for text in texts]).embedding
    )
    ours, theirs = prompted.fingerprint("text"), plain.fingerprint("text")
    assert ours.weights_sha256 == theirs.weights_sha256
    assert ours.preprocessing_sha256 != theirs.preprocessing_sha256


def test_a_multimodal_model_gives_its_embedding_as_its_one_token(tmp_path: Path, picture: Draw) -> None:
    clip = models.save_clip(tmp_path / "clip")
    folder = tmp_path / "model"
    library.SentenceTransformer(modules=[modules.CLIPModel(str(clip))], device="cpu").save_pretrained(
        str(folder), create_model_card=False
    )
    encoder = load_encoder(f"sentence-transformers:{folder}")
    own = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    pictures = [picture(seed, 40 + seed, 30) for seed in range(3)]
    assert encoder.modalities == ("image", "text")
    for encoded, items in ((encoder.encode_images(pictures), pictures), (encoder.encode_texts(TEXTS), TEXTS)):
        expected = own.encode(items, convert_to_tensor=True)
        # Where torchvision is installed the library resizes by that, and we don't.
        torch.testing.assert_close(encoded.embedding, F.normalize(expected, dim=-1), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(encoded.tokens, expected, rtol=1e-3, atol=1e-4)
        assert encoded.lengths.tolist() == [1] * len(items)
    clip_itself = load_encoder(f"clip:{clip}")
    torch.testing.assert_close(encoder.encode_texts(TEXTS).embedding, clip_itself.encode_texts(TEXTS).embedding)
    torch.testing.assert_close(encoder.encode_images(pictures).embedding, clip_itself.encode_images(pictures).embedding)
    check_encoder(encoder)


def test_a_model_of_word_embeddings_alone(tmp_path: Path) -> None:
    tokenizer = models.word_tokenizer(pad="[PAD]").backend_tokenizer
    torch.manual_seed(0)
    static = modules.StaticEmbedding(tokenizer, embedding_dim=16)
    library.SentenceTransformer(modules=[static], device="cpu").save_pretrained(str(tmp_path), create_model_card=False)
    encoder = load_encoder(f"sentence-transformers:{tmp_path}")
    expected = library.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(encoder.encode_texts(TEXTS).tokens, expected)
    check_encoder(encoder)


def test_weights_of_every_module_are_in_the_fingerprint(bert: Path, tmp_path: Path) -> None:
    before = load_encoder(f"sentence-transformers:{_save(bert, tmp_path / 'model', dense=8)}").fingerprint("text")
    weights = next((tmp_path / "model").glob("*Dense/model.safetensors"))
    module = modules.Dense(32, 8)
    module.save(str(weights.parent))
    after = load_encoder(f"sentence-transformers:{tmp_path / 'model'}").fingerprint("text")
    assert before.weights_sha256 != after.weights_sha256
    assert before.preprocessing_sha256 == after.preprocessing_sha256


def test_a_model_in_the_hub_s_cache_is_loaded_offline_and_pinned(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = _save(bert, tmp_path / "model", dense=8), tmp_path / "cache"
    repository = cache / "models--tiny--sentences"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    encoder, local = (load_encoder(f"sentence-transformers:{name}") for name in ("tiny/sentences", folder))
    torch.testing.assert_close(encoder.encode_texts(TEXTS).embedding, local.encode_texts(TEXTS).embedding)
    ours, theirs = encoder.fingerprint("text"), local.fingerprint("text")
    assert (ours.name, ours.revision) == ("sentence-transformers:tiny/sentences text", COMMIT)
    assert ours.weights_sha256 == theirs.weights_sha256
    assert ours.preprocessing_sha256 == theirs.preprocessing_sha256


def test_what_is_fetched_from_the_hub_is_all_that_the_modules_need(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        raise OSError("no network here")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConfigError, match="no network here"):
        load_encoder("sentence-transformers:tiny/sentences")
    held = ["modules.json", "model.safetensors", "1_Pooling/config.json", "2_Dense/pytorch_model.bin"]
    useless = ["pytorch_model.bin", "onnx/model.onnx", "README.md", "own.py", "openvino/openvino_model.bin"]
    filtered = list(huggingface_hub.utils.filter_repo_objects([*held, *useless], allow_patterns=asked[0]))
    assert filtered == held


def test_bad_models_are_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model of sentence-transformers: it has no modules\.json"):
        load_encoder(f"sentence-transformers:{bert}")
    folder = _save(bert, tmp_path / "model")
    with pytest.raises(DataError, match="at least one visible"):
        load_encoder(f"sentence-transformers:{folder}").encode_texts([" "])
    listed = json.loads((folder / "modules.json").read_text())
    (folder / "own.py").write_text("raise SystemExit('run')")
    (folder / "modules.json").write_text(json.dumps([*listed, {**listed[-1], "type": "own.Module"}]))
    with pytest.raises(ConfigError, match=r"needs code of its own \(own.Module\)"):
        load_encoder(f"sentence-transformers:{folder}")
    (folder / "modules.json").write_text("{")
    with pytest.raises(CheckpointError, match="can't be loaded"):
        load_encoder(f"sentence-transformers:{folder}")
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="can't be loaded"):
        load_encoder(f"sentence-transformers:{folder}")


def test_missing_weights_are_not_filled_at_random(bert: Path, tmp_path: Path) -> None:
    folder = _save(bert, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "pooler" not in name},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    load_encoder(f"sentence-transformers:{folder}")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of a BertModel, such as encoder\.layer\.1"):
        load_encoder(f"sentence-transformers:{folder}")


def test_an_adapter_is_refused(bert: Path, tmp_path: Path) -> None:
    folder = _save(bert, tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds an adapter beside its model"):
        load_encoder(f"sentence-transformers:{folder}")


def test_the_library_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'modalloy\[sentence-transformers\]'"):
        SentenceTransformersEncoder("sentence-transformers", "anything")
