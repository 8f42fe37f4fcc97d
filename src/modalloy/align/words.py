"""A caption's words from what an encoder's text tokens stand for, and where in a picture each is found."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from modalloy.align.attention_map import attention_maps
from modalloy.align.cross_attention import CrossAttention
from modalloy.align.local_similarity import Tokens

_SPECIAL = re.compile(r"\[[A-Za-z]+\]|<[^<>]+>")
_INSIDE, _STARTS, _END = "##", ("▁", "Ġ"), "</w>"


@dataclass(frozen=True)
class WordMap:
    """Where in a picture a local branch finds a word."""

    word: str
    """The word."""
    weights: Float[Tensor, "rows columns"]
    """Its attention on the picture's token grid, which lies on the picture's largest centred crop of its shape."""
    score: float
    """What it adds to the local score, which is the mean over all tokens of the caption."""


def word_maps(
    images: Tokens,
    captions: Tokens,
    pieces: Sequence[Sequence[str]],
    grid: tuple[int, int],
    attention: CrossAttention,
) -> list[list[WordMap]]:
    """For each pair the caption's words in reading order, each as the mean of its pieces.

    Args:
        images: regions of the images, mapped by the local branch.
        captions: words of the captions in the same places, mapped by it.
        pieces: what each caption's tokens stand for.
        grid: rows and columns of the images' regions.
        attention: of the local branch.

    Raises:
        DataError: see `attention_maps`.
    """
    maps = attention_maps(images, captions, attention)
    found = []
    for spelled, weights, own in zip(pieces, maps.weights.cpu(), maps.words.cpu(), strict=True):
        places = weights[:, : grid[0] * grid[1]].unflatten(1, grid)
        found.append([WordMap(word, places[at].mean(0), float(own[at].mean())) for word, at in joined_words(spelled)])
    return found


def joined_words(pieces: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The words that word pieces spell, with the places of each one's pieces.

    Special tokens and signs are left out. Pieces may be marked as those of BERT ("##ing"), CLIP ("ing</w>"),
    SentencePiece ("▁ing") or RoBERTa ("Ġing"); unmarked ones are words.

    >>> joined_words(["[summary]", "[CLS]", "a", "run", "##ning", "dog", ".", "[SEP]"])
    [('a', [2]), ('running', [3, 4]), ('dog', [5])]
    """
    mark_starts = any(piece.startswith(_STARTS) for piece in pieces)
    mark_ends = any(piece.endswith(_END) for piece in pieces)
    words: list[tuple[str, list[int]]] = []
    within = False
    for place, piece in enumerate(pieces):
        spelling = piece.removeprefix(_INSIDE).lstrip("".join(_STARTS)).removesuffix(_END)
        if _SPECIAL.fullmatch(piece) or not any(map(str.isalnum, spelling)):
            within = False
            continue
        goes_on = piece.startswith(_INSIDE) or mark_ends or (mark_starts and not piece.startswith(_STARTS))
        if within and goes_on:
            words[-1] = words[-1][0] + spelling, [*words[-1][1], place]
        else:
            words.append((spelling, [place]))
        within = not piece.endswith(_END)
    return words
