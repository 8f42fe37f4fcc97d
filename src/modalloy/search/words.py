"""Where in one picture each word of a text is found, by an encoder's first local branch that can tell."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from modalloy.align import AlignedEncoder
from modalloy.align.words import WordMap, word_maps
from modalloy.encoders import Encoder
from modalloy.errors import ConfigError
from modalloy.search.local_scores import local_encoders


@dataclass(frozen=True)
class FoundWords:
    """The words of a text in a picture."""

    words: Sequence[WordMap]
    """In reading order; their weights lie on the picture's largest centred crop that has the grid's shape."""
    grid: tuple[int, int]
    """Rows and columns of the weights."""
    encoder: str
    """The encoder whose attention it is."""


def words_finder(encoder: Encoder) -> AlignedEncoder | None:
    """The first local branch's encoder whose tokens stand for words and places; None where there is none."""
    for each in local_encoders(encoder):
        if each.token_grid() is not None and each.token_texts("a") is not None:
            return each
    return None


@torch.no_grad()
def find_words(encoder: Encoder, picture: Image.Image, text: str) -> FoundWords:
    """Where the words of a text are found in a picture.

    Args:
        encoder: an aligned encoder with a local branch, or an alloy of which an input is one.
        picture: in RGB.
        text: words.

    Raises:
        ConfigError: there is no local branch, or none whose tokens stand for words and places.
        DataError: the text is blank.
    """
    finder = words_finder(encoder)
    if finder is None:
        raise ConfigError(f"{encoder.name} has no local branch that tells where in a picture words are found.")
    grid, pieces = finder.token_grid(), finder.token_texts(text)
    assert grid is not None and pieces is not None
    seen = finder.backbone("image").encode_images([picture])
    read = finder.backbone("text").encode_texts([text])
    regions = finder.project_tokens("image", {"high": (seen.tokens, seen.lengths)})["high"]
    words = finder.project_tokens("text", {"high": (read.tokens, read.lengths)})["high"]
    (found,) = word_maps(regions, words, [pieces], grid, finder.branch().config.attention)
    return FoundWords(found, grid, finder.name)
