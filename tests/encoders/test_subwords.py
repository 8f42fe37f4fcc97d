import math
from hashlib import blake2b

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from modalloy.encoders.minilm import minilm_folder
from modalloy.encoders.subwords import Subwords, _hashed_n_grams
from modalloy.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def subwords() -> Subwords:
    return Subwords()


def naive_hash(word: str) -> torch.Tensor:
    marked = f"<{word}>"
    grams = [marked]
    for length in (3, 4, 5):
        grams += [marked[i : i + length] for i in range(len(marked)) if i + length <= len(marked)]
    total = [0.0] * 384
    for gram in grams:
        bits = int.from_bytes(blake2b(gram.encode(), digest_size=48).digest(), "big")
        for position in range(384):
            total[position] += 1.0 if bits >> (383 - position) & 1 else -1.0
    return torch.tensor(total)


def naive_word_pieces(word: str, vocabulary: list[str]) -> list[str]:
    """The longest piece that fits, again and again."""
    pieces: list[str] = []
    while word:
        marked = f"##{word}" if pieces else word
        while marked not in vocabulary:
            marked = marked[:-1]
        pieces.append(marked)
        word = word[len(marked.removeprefix("##")) :]
    return pieces


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12))
def test_hashing_equals_the_naive_sum(word: str) -> None:
    assert torch.equal(_hashed_n_grams(word), naive_hash(word))


def test_a_token_is_the_weighted_pair_of_both_views(subwords: Subwords) -> None:
    text = "unbelievablenesses"
    vocabulary = (minilm_folder() / "vocab.txt").read_text().splitlines()
    pieces = naive_word_pieces(text, vocabulary)
    assert len(pieces) > 2
    table = load_file(minilm_folder() / "model.safetensors")["embeddings.word_embeddings.weight"]
    ranks = [vocabulary.index(piece) for piece in pieces]
    centred = torch.stack([F.normalize(table[rank] - table.mean(0), dim=0) for rank in ranks])
    weight = sum(math.log(2 + rank - vocabulary.index("the")) for rank in ranks) / len(ranks)
    expected = torch.cat([2 * F.normalize(centred.mean(0), dim=0), F.normalize(naive_hash(text), dim=0)])
    encoded = subwords.encode_texts([text.upper()])
    assert encoded.lengths.tolist() == [2]
    torch.testing.assert_close(encoded.tokens[1], weight * expected, atol=1e-4, rtol=1e-4)


def test_the_summary_token_is_the_mean(subwords: Subwords) -> None:
    encoded = subwords.encode_texts(["A red telephone, ringing", "dogs"])
    assert encoded.lengths.tolist() == [6, 2]
    for tokens, embedding in zip(encoded.tokens_of_each(), encoded.embedding, strict=True):
        torch.testing.assert_close(tokens[0], tokens[1:].mean(0))
        torch.testing.assert_close(embedding, F.normalize(tokens[0], dim=-1))


def test_the_batch_does_not_change_an_item(subwords: Subwords) -> None:
    texts = ["a dog", "two dogs running over the grass", "x"]
    together, alone = subwords.encode_texts(texts), subwords.encode_texts(texts, batch_size=1)
    torch.testing.assert_close(together.embedding, alone.embedding)
    torch.testing.assert_close(together.tokens, alone.tokens)


def test_rare_words_weigh_more(subwords: Subwords) -> None:
    the, telephone = subwords.encode_texts(["the telephone"]).tokens[1:].norm(dim=-1)
    assert telephone > 5 * the


def test_words_that_share_a_stem_are_alike(subwords: Subwords) -> None:
    photograph, photographer, dog = subwords.encode_texts(["photograph", "photographer", "dog"]).embedding
    assert photograph @ photographer > 0.3 > photograph @ dog


def test_case_does_not_count_but_order_is_not_seen(subwords: Subwords) -> None:
    one, other, turned = subwords.encode_texts(["A Red DOG", "a red dog", "dog red a"]).embedding
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, turned)


def test_token_texts_match_the_tokens(subwords: Subwords) -> None:
    text = "Unbelievableness, a telephone"
    assert subwords.token_texts(text) == ["[summary]", "unbelievableness", ",", "a", "telephone"]
    assert subwords.encode_texts([text]).lengths.tolist() == [5]


def test_a_long_text_is_cut_off(subwords: Subwords) -> None:
    encoder = Subwords(max_length=2)
    assert encoder.spec == "subwords@2"
    cut, short = encoder.encode_texts(["a dog runs"]), subwords.encode_texts(["a dog"])
    torch.testing.assert_close(cut.tokens, short.tokens)
    made, other = encoder.fingerprint("text"), subwords.fingerprint("text")
    assert made.weights_sha256 == other.weights_sha256
    assert made.preprocessing_sha256 != other.preprocessing_sha256


@pytest.mark.parametrize("text", ["", "  ", "\ud800", "\u200b"])
def test_texts_that_cannot_be_encoded(subwords: Subwords, text: str) -> None:
    with pytest.raises(DataError, match="A text must"):
        subwords.encode_texts(["fine", text])


def test_bad_options(subwords: Subwords) -> None:
    with pytest.raises(ConfigError, match="at least 1 word piece, got 0"):
        Subwords(max_length=0)
    with pytest.raises(ConfigError, match="subwords encodes text, not image"):
        subwords.width("image")
