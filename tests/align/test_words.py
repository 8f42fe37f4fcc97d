import pytest

from modalloy.align.words import joined_words


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ("[CLS] con ##ver ##ging dogs , [SEP]", ["converging", "dogs"]),
        ("[summary] <|startoftext|> con verging</w> dogs</w> .</w> <|endoftext|>", ["converging", "dogs"]),
        ("▁con verging ▁ dogs . </s>", ["converging", "dogs"]),
        ("<s> con verging Ġdogs Ġ. </s>", ["converging", "dogs"]),
        ("[summary] unbelievable dogs 2", ["unbelievable", "dogs", "2"]),
        ("[CLS] 红 色 ! [SEP]", ["红", "色"]),
        ("[CLS] [ dog ] < 3 > dog ' s [SEP]", ["dog", "3", "dog", "s"]),
        ("[CLS] . [SEP]", []),
        ("", []),
    ],
)
def test_pieces_become_words(pieces: str, words: list[str]):
    split = pieces.split()
    found = joined_words(split)
    assert [word for word, _ in found] == words
    for word, places in found:
        assert places == list(range(places[0], places[0] + len(places)))
        assert "".join(split[place].strip("#▁Ġ").removesuffix("</w>") for place in places) == word


def test_a_piece_behind_a_sign_begins_a_word():
    assert joined_words(["a", "-", "##b", "##c"]) == [("a", [0]), ("bc", [2, 3])]
