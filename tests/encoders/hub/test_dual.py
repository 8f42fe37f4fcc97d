"""Each family against the library's own calls, made as a user of transformers makes them: one item at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoders.hub import families, models
from PIL import Image
from torch.nn import functional as F

from modalloy.encoders import Encoded, Encoder, load_encoder
from modalloy.encoders.check import check_encoder
from modalloy.encoders.hub.dual import HubDualEncoder
from modalloy.errors import ConfigError

Draw = Callable[..., Image.Image]

TEXTS = ["A red phone", "the old DOG runs with a small blue telephone, on the house", "cat"]
# By model: the kind of the spec, what saves it, the library's class, and the length that texts are cut to.
MODELS: dict[str, tuple[str, Callable[[Path], Path], Any, int]] = {
    "clip": ("clip", models.save_clip, transformers.CLIPModel, 77),
    "siglip": ("siglip", models.save_siglip, transformers.SiglipModel, 64),
    "siglip-left": ("siglip", lambda folder: models.save_siglip(folder, "left"), transformers.SiglipModel, 64),
    "siglip2": ("siglip", families.save_siglip2, transformers.Siglip2Model, 64),
    "align": ("align", families.save_align, transformers.AlignModel, 64),
    "chinese-clip": ("chinese-clip", families.save_chinese_clip, transformers.ChineseCLIPModel, 52),
    "altclip": ("altclip", families.save_altclip, transformers.AltCLIPModel, 77),
    "dual-vit": ("dual", families.save_dual, transformers.VisionTextDualEncoderModel, 64),
    "dual-clip": (
        "dual",
        lambda folder: families.save_dual(folder, "clip"),
        transformers.VisionTextDualEncoderModel,
        64,
    ),
    "dual-siglip": (
        "dual",
        lambda folder: families.save_dual(folder, "siglip"),
        transformers.VisionTextDualEncoderModel,
        64,
    ),
}
SIGLIPS = [name for name in MODELS if name.startswith("siglip")]
MASKED = [name for name in MODELS if name not in SIGLIPS]


class Library:
    """A saved model by transformers alone."""

    def __init__(self, folder: Path, architecture: Any) -> None:
        self.model = architecture.from_pretrained(folder).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.pictures = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")

    @torch.no_grad()
    def text(self, text: str, masked: bool = True, **padding: Any) -> Any:
        inputs = self.tokenizer(text, truncation=True, return_tensors="pt", **padding)
        mask = {"attention_mask": inputs["attention_mask"]} if masked else {}
        return self.model.get_text_features(input_ids=inputs["input_ids"], **mask)

    @torch.no_grad()
    def image(self, image: Image.Image) -> Any:
        return self.model.get_image_features(**self.pictures(images=image, return_tensors="pt"))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Encoder, Library]]:
    """Saves a model on first use, and loads it twice: by modalloy, and by transformers."""
    made: dict[str, tuple[Encoder, Library]] = {}

    def load(name: str) -> tuple[Encoder, Library]:
        if name not in made:
            kind, save, architecture, _ = MODELS[name]
            folder = save(tmp_path_factory.mktemp(name) / "model")
            made[name] = load_encoder(f"{kind}:{folder}"), Library(folder, architecture)
        return made[name]

    return load


Loaded = Callable[[str], tuple[Encoder, Library]]


def _expected_text(name: str, library: Library, text: str) -> Any:
    if name in SIGLIPS:
        return library.text(text.lower(), masked=False, padding="max_length", max_length=64)
    return library.text(text, max_length=MODELS[name][3])


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def _differ(found: torch.Tensor, other: torch.Tensor) -> None:
    assert (F.normalize(found, dim=-1) - F.normalize(other, dim=-1)).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_texts_are_the_library_s(name: str, loaded: Loaded) -> None:
    encoder, library = loaded(name)
    encoded = encoder.encode_texts(TEXTS)
    assert (encoded.embedding.shape[1], encoded.tokens.shape[1]) == (encoder.dim("text"), encoder.width("text"))
    for text, tokens, embedding in zip(TEXTS, encoded.tokens_of_each(), encoded.embedding, strict=True):
        expected = _expected_text(name, library, text)
        _close(embedding, F.normalize(expected.pooler_output[0], dim=-1))
        hidden = expected.last_hidden_state[0]
        words = len(library.tokenizer(text)["input_ids"])
        if name == "clip":
            _close(tokens[0], hidden[words - 1])
            _close(library.model.text_projection(tokens[0]), expected.pooler_output[0])
            tokens = tokens[1:]
        elif name in SIGLIPS:
            _close(library.model.text_model.head(tokens[0]), expected.pooler_output[0])
            hidden = hidden[-words:] if name == "siglip-left" else hidden
            tokens = tokens[1:]
        _close(tokens, hidden[:words])


@pytest.mark.parametrize("name", MODELS)
def test_images_are_the_library_s(name: str, loaded: Loaded, picture: Draw) -> None:
    encoder, library = loaded(name)
    images = [picture(0), picture(1, 90, 40), picture(2, 30, 77)]
    encoded = encoder.encode_images(images)
    assert (encoded.embedding.shape[1], encoded.tokens.shape[1]) == (encoder.dim("image"), encoder.width("image"))
    for image, tokens, embedding in zip(images, encoded.tokens_of_each(), encoded.embedding, strict=True):
        expected = library.image(image)
        pooled, hidden = expected.pooler_output[0], expected.last_hidden_state[0]
        _close(embedding, F.normalize(pooled, dim=-1))
        if name == "align":
            cells = [hidden[:, row, column] for row in range(hidden.shape[1]) for column in range(hidden.shape[2])]
            hidden = torch.stack([pooled, *cells])
        elif name == "dual-siglip":
            hidden = torch.stack([hidden.mean(dim=0), *hidden])
        elif name in SIGLIPS:
            hidden = torch.stack([pooled, *hidden])
        _close(tokens, hidden[: len(tokens)])
        if name != "siglip2":
            assert len(tokens) == len(hidden)


@pytest.mark.parametrize("name", MODELS)
def test_the_batch_does_not_change_an_item(name: str, loaded: Loaded, picture: Draw) -> None:
    encoder, _ = loaded(name)

    def check(together: Encoded, alone: Encoded) -> None:
        assert together.lengths.tolist() == alone.lengths.tolist()
        _close(together.embedding, alone.embedding)
        _close(together.tokens, alone.tokens)

    texts = [*TEXTS, "a " * 100]
    check(encoder.encode_texts(texts), encoder.encode_texts(texts, batch_size=1))
    images = [picture(0), picture(1, 90, 40), picture(2, 30, 77)]
    check(encoder.encode_images(images), encoder.encode_images(images, batch_size=2))


@pytest.mark.parametrize("name", MODELS)
def test_the_contract_is_kept(name: str, loaded: Loaded) -> None:
    check_encoder(loaded(name)[0])


@pytest.mark.parametrize("name", MODELS)
def test_a_long_text_is_cut_where_the_family_was(name: str, loaded: Loaded) -> None:
    encoder, library = loaded(name)
    longest = MODELS[name][3]
    text = "red " + "a " * 200
    encoded = encoder.encode_texts([text])
    summaries = 1 if name in ("clip", *SIGLIPS) else 0
    assert encoded.lengths.tolist() == [longest + summaries]
    assert len(encoder.token_texts(text) or []) == longest + summaries
    _close(encoded.embedding, F.normalize(_expected_text(name, library, text).pooler_output, dim=-1))


@pytest.mark.parametrize("name", SIGLIPS)
def test_siglip_pads_to_its_full_length_unmasked_and_lower_cased(name: str, loaded: Loaded) -> None:
    encoder, library = loaded(name)
    text = "A red DOG"
    found = encoder.encode_texts([text]).embedding
    _close(found, encoder.encode_texts([text.lower()]).embedding)
    _differ(found, library.text(text.lower(), masked=False).pooler_output)
    _differ(found, library.text(text.lower(), padding="max_length", max_length=64).pooler_output)
    if name != "siglip2":  # whose tokenizer lower-cases by itself
        _differ(found, library.text(text, masked=False, padding="max_length", max_length=64).pooler_output)


def test_siglip_pads_on_its_tokenizer_s_side(loaded: Loaded) -> None:
    left, right = (loaded(name)[0].encode_texts(TEXTS).embedding for name in ("siglip-left", "siglip"))
    _differ(left, right)


@pytest.mark.parametrize("name", [name for name in MASKED if name != "clip"])
def test_unmasked_padding_would_change_a_text(name: str, loaded: Loaded) -> None:
    encoder, library = loaded(name)
    padding = {"padding": "max_length", "max_length": 40}
    found = encoder.encode_texts([TEXTS[0]]).embedding
    _close(found, F.normalize(library.text(TEXTS[0], **padding).pooler_output, dim=-1))
    _differ(found, library.text(TEXTS[0], masked=False, **padding).pooler_output)


def test_masked_texts_are_padded_on_the_right_whatever_the_tokenizer_says(tmp_path: Path) -> None:
    folder = families.save_chinese_clip(tmp_path / "model")
    right = load_encoder(f"chinese-clip:{folder}").encode_texts(TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.save_pretrained(folder)
    left = load_encoder(f"chinese-clip:{folder}")
    assert left._processors["text"]._tokenizer.padding_side == "left"  # type: ignore[attr-defined]
    _close(left.encode_texts(TEXTS).embedding, right.embedding)
    _close(left.encode_texts(TEXTS).tokens, right.tokens)


def test_a_cased_model_keeps_capitals(loaded: Loaded) -> None:
    encoder, library = loaded("dual-vit")
    found = encoder.encode_texts(["A Red dog"]).embedding
    _close(found, F.normalize(library.text("A Red dog").pooler_output, dim=-1))
    _differ(found, library.text("a red dog").pooler_output)


def test_chinese_clip_s_quotes_are_straightened(loaded: Loaded) -> None:
    encoder, library = loaded("chinese-clip")
    assert encoder.token_texts("“红色的猫”") == ["[CLS]", '"', "红", "色", "的", "猫", '"', "[SEP]"]
    found = encoder.encode_texts(["“红色的猫”"]).embedding
    _close(found, F.normalize(library.text('"红色的猫"').pooler_output, dim=-1))
    _differ(found, library.text("“红色的猫”").pooler_output)


def test_pictures_of_any_shape_give_as_many_tokens_as_patches(loaded: Loaded, picture: Draw) -> None:
    encoder, library = loaded("siglip2")
    images = [picture(0), picture(1, 200, 40)]
    lengths = encoder.encode_images(images).lengths.tolist()
    patches = [int(library.pictures(images=image)["pixel_attention_mask"][0].sum()) for image in images]
    assert lengths == [count + 1 for count in patches]
    assert patches[0] != patches[1]


@pytest.mark.parametrize(
    ("name", "grid"),
    [("clip", (4, 4)), ("siglip", (4, 4)), ("siglip2", None), ("align", (8, 8)), ("dual-siglip", (4, 4))],
)
def test_the_token_grid(name: str, grid: tuple[int, int] | None, loaded: Loaded) -> None:
    encoder, library = loaded(name)
    if name == "align":
        rows, columns = library.image(Image.new("RGB", (64, 64))).last_hidden_state.shape[-2:]
        grid = (rows, columns)
    assert encoder.token_grid() == grid


def test_token_texts_match_the_tokens(loaded: Loaded) -> None:
    text = "A red dog"
    assert loaded("siglip")[0].token_texts(text) == ["[summary]", "a", "red", "dog", "</s>"]
    assert loaded("chinese-clip")[0].token_texts(text) == ["[CLS]", "a", "red", "dog", "[SEP]"]
    assert loaded("clip")[0].token_texts("a b") == ["[summary]", "<|startoftext|>", "a</w>", "b</w>", "<|endoftext|>"]


def test_siglip_s_own_tokenizer(tmp_path: Path, picture: Draw) -> None:
    """SigLIP 1's tokenizer, a SentencePiece model that also takes punctuation out."""
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red dog runs", "the cat on a house", "old blue phone"] * 20),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"pad_id": -1, "bos_id": -1, "eos_id": 1, "unk_id": 0},
    )
    folder = models.save_siglip(tmp_path / "model")
    for path in folder.glob("token*"):
        path.unlink()
    tokenizer = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    tokenizer.save_pretrained(folder)
    network = transformers.SiglipModel.from_pretrained(folder)
    torch.manual_seed(0)
    network.resize_token_embeddings(len(tokenizer))
    families.randomise(network).save_pretrained(folder)
    encoder, library = load_encoder(f"siglip:{folder}"), Library(folder, transformers.SiglipModel)
    assert type(library.tokenizer).__name__ == "SiglipTokenizer"
    found = encoder.encode_texts(["A red dog, runs!", "the cat"])
    _close(found.embedding[:1], encoder.encode_texts(["a red dog runs"]).embedding)
    expected = library.text("A red dog, runs!", masked=False, padding="max_length", max_length=64)
    _close(found.embedding[:1], F.normalize(expected.pooler_output, dim=-1))


def test_settings_are_in_the_fingerprint(loaded: Loaded, tmp_path: Path) -> None:
    encoder, _ = loaded("siglip")
    made = encoder.fingerprint("text")
    other = load_encoder(f"siglip:{models.save_siglip(tmp_path / 'model', 'left')}").fingerprint("text")
    assert (made.name, made.revision) == ("siglip:model text", "local")
    assert made.weights_sha256 == other.weights_sha256
    assert made.preprocessing_sha256 != other.preprocessing_sha256


def test_the_summary_of_clip_s_text_tower_is_its_last_token_in_any_model(tmp_path: Path) -> None:
    tokenizer = models.clip_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = transformers.CLIPTextConfig(**models.TOWER, vocab_size=len(tokenizer), max_position_embeddings=77, **ids)
    folder = families.save_dual_of(tmp_path / "model", transformers.ViTConfig(**models.VISION), text, tokenizer)
    encoder = load_encoder(f"dual:{folder}")
    cat, dog = encoder.encode_texts(["a cat", "a red dog"]).tokens_of_each()
    _close(cat[0], cat[-1])
    _close(dog[0], dog[-1])
    # In a causal tower the first token is the same for all texts.
    _close(cat[1], dog[1])


def test_a_text_is_cut_to_the_positions_of_a_tower_that_counts_behind_its_padding(tmp_path: Path) -> None:
    tokenizer = models.word_tokenizer(pad="<pad>", begin="<s>")
    text = transformers.RobertaConfig(
        **models.TOWER, vocab_size=len(tokenizer), max_position_embeddings=20, pad_token_id=tokenizer.pad_token_id
    )
    folder = families.save_dual_of(tmp_path / "model", transformers.ViTConfig(**models.VISION), text, tokenizer)
    assert load_encoder(f"dual:{folder}").encode_texts(["a red dog " * 20]).lengths.tolist() == [19]


def test_registers_are_no_tokens(tmp_path: Path, picture: Draw) -> None:
    size = {key: value for key, value in models.VISION.items() if key != "intermediate_size"}
    vision = transformers.Dinov2WithRegistersConfig(**size, num_register_tokens=3)
    text = transformers.BertConfig(**models.TOWER, max_position_embeddings=64, vocab_size=40)
    folder = families.save_dual_of(tmp_path / "model", vision, text, families.bert_tokenizer())
    encoder = load_encoder(f"dual:{folder}")
    assert encoder.token_grid() == (4, 4)
    pixels = encoder.preprocess("image", picture(0))
    with torch.no_grad():
        hidden = encoder._network.vision_model(pixel_values=pixels[None]).last_hidden_state[0]  # type: ignore[attr-defined]
    _close(encoder.encode_images([picture(0)]).tokens, torch.cat([hidden[:1], hidden[4:]]))


def test_an_unknown_family() -> None:
    with pytest.raises(ConfigError, match=r"one of clip, siglip, .*, got 'flava'"):
        HubDualEncoder("flava", "anywhere")
