from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from encoders.hub import families
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modalloy.encoders import Encoder, load_encoder
from modalloy.encoders.check import check_encoder
from modalloy.encoders.hub.captions import BLIP_CAPTIONS
from modalloy.errors import CheckpointError, ConfigError, DataError

Draw = Callable[..., Image.Image]
TEXTS = ["a red phone", "the old dog runs with a small blue telephone", "cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.save_blip(tmp_path_factory.mktemp("blip") / "model")


@pytest.fixture(scope="module")
def blip(folder: Path) -> Encoder:
    return load_encoder(f"blip:{folder}")


@pytest.fixture(scope="module")
def library(folder: Path) -> Callable[[Image.Image, str], tuple[torch.Tensor, ...]]:
    """The contrastive score and both modalities' hidden states of a pair, by transformers alone."""
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    model = transformers.BlipForImageTextRetrieval.from_pretrained(folder).eval()

    @torch.no_grad()
    def score(image: Image.Image, text: str) -> tuple[torch.Tensor, ...]:
        inputs = processor(images=image, text=text, truncation=True, max_length=35, return_tensors="pt")
        given = model(**inputs, use_itm_head=False)
        return given.itm_score[0, 0], given.last_hidden_state[0], given.question_embeds[0]

    return score


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_scores_and_tokens_are_the_library_s(
    blip: Encoder, library: Callable[..., tuple[torch.Tensor, ...]], picture: Draw
) -> None:
    images = [picture(0), picture(1, 90, 40)]
    seen, read = blip.encode_images(images), blip.encode_texts(TEXTS)
    assert (seen.embedding.shape, read.embedding.shape) == ((2, 24), (3, 24))
    for row, image in enumerate(images):
        for column, text in enumerate(TEXTS):
            score, patches, words = library(image, text)
            _close(seen.embedding[row] @ read.embedding[column], score)
            _close(seen.tokens_of_each()[row], patches)
            _close(read.tokens_of_each()[column], words)


def test_the_batch_does_not_change_an_item(blip: Encoder, picture: Draw) -> None:
    _close(blip.encode_texts(TEXTS).tokens, blip.encode_texts(TEXTS, batch_size=1).tokens)
    images = [picture(0), picture(1), picture(2)]
    _close(blip.encode_images(images).tokens, blip.encode_images(images, batch_size=2).tokens)
    check_encoder(blip)


def test_captions_are_rewritten_as_the_authors_did(
    blip: Encoder, library: Callable[..., tuple[torch.Tensor, ...]], picture: Draw
) -> None:
    found = blip.encode_texts(["A red! (DOG)"]).embedding
    _close(found, blip.encode_texts(["a red dog"]).embedding)
    image = picture(0)
    seen = blip.encode_images([image]).embedding[0]
    _close(seen @ found[0], library(image, "a red dog")[0])
    assert abs(float(seen @ found[0] - library(image, "A red! (DOG)")[0])) > 1e-3
    assert blip.token_texts("A red!") == ["[CLS]", "a", "red", "[SEP]"]
    # 30 words are 32 tokens; only words of several pieces reach the limit of 35.
    assert blip.encode_texts(["a " * 50]).lengths.tolist() == [32]
    assert blip.encode_texts(["dogs " * 30]).lengths.tolist() == [35]


def test_a_caption_of_punctuation_alone_is_refused(blip: Encoder) -> None:
    with pytest.raises(DataError, match=r"Of the text '\.\.\.' nothing is left"):
        blip.encode_texts(["..."])


@given(st.text(st.sampled_from("Ab .!\"()*#:;~,?'-/ \n"), max_size=30))
def test_the_rule_letter_by_letter(caption: str) -> None:
    letters = [" " if letter in '.!"()*#:;~' else letter for letter in caption.lower()]
    assert BLIP_CAPTIONS(caption).split() == "".join(letters).split()


def test_the_token_grid_is_that_of_the_patches(blip: Encoder) -> None:
    assert blip.token_grid() == (4, 4)


def test_the_rule_is_in_the_fingerprint(blip: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = blip.fingerprint("text").preprocessing_sha256
    monkeypatch.setattr(blip._processors["text"], "_rule", None)  # type: ignore[attr-defined]
    assert blip.fingerprint("text").preprocessing_sha256 != before


def test_another_blip_is_refused(folder: Path, tmp_path: Path) -> None:
    config = transformers.BlipConfig.from_pretrained(folder)
    transformers.BlipModel(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks .* weights of a BlipForImageTextRetrieval"):
        load_encoder(f"blip:{tmp_path}")
    with pytest.raises(ConfigError, match="holds a model of type 'blip', but 'clip' takes 'clip'"):
        load_encoder(f"clip:{folder}")
