"""A caption's words from what an encoder's text tokens stand for."""

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"\[[A-Za-z]+\]|<[^<>]+>")
_INSIDE, _STARTS, _END = "##", ("▁", "Ġ"), "</w>"


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
