"""Families: pictures too alike to stand in different splits."""

import re
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from demo_set.captions import words_of
from demo_set.word_lists import VARIANTS


def title_stem(title: str) -> str:
    """What a title is about: its words without brackets, digits, articles and variants, in a fixed order.

    >>> title_stem("Ice Cream Cone (4 Scoop) in black and white"), title_stem("Simple cone of ice creams")
    ('cone cream ice', 'cone cream ice')
    """
    words = words_of(re.sub(r"\([^)]*\)", " ", title))
    singular = {word if word.endswith("ss") else word.removesuffix("s") for word in words}
    stem = {word for word in singular if len(word) > 1 and word not in VARIANTS}
    return " ".join(sorted(stem or singular))


def families_of(titles: Sequence[str], fingerprints: np.ndarray, threshold: float) -> list[int]:
    """A family number for each picture: same title stem, or fingerprints that correlate above `threshold`."""
    first_with_stem: dict[str, int] = {}
    same_stem = [(first_with_stem.setdefault(title_stem(title), row), row) for row, title in enumerate(titles)]
    rows, columns = np.nonzero(np.triu(fingerprints @ fingerprints.T > threshold, k=1))
    sources = np.concatenate([rows, [first for first, _ in same_stem]]).astype(int)
    targets = np.concatenate([columns, [row for _, row in same_stem]]).astype(int)
    links = coo_array((np.ones(len(sources)), (sources, targets)), shape=(len(titles), len(titles)))
    _, labels = connected_components(links, directed=False)
    return [int(label) for label in labels]
