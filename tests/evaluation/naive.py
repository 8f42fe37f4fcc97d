"""Slow and plain references: Python loops, sorting, and every order of the ties."""

import itertools
import math
from collections.abc import Callable, Iterator
from statistics import fmean

import torch
from hypothesis import strategies as st
from torch import Tensor

from modalloy.evaluation import Ranks


class TableScores:
    """A score function that reads a table."""

    def __init__(self, table: Tensor):
        self.table = table

    @property
    def n_images(self) -> int:
        return self.table.shape[0]

    @property
    def n_captions(self) -> int:
        return self.table.shape[1]

    def score(self, images: slice, captions: slice) -> Tensor:
        return self.table[images, captions]


@st.composite
def tables(draw, max_images: int = 4, max_captions: int = 6, nan: bool = True) -> tuple[Tensor, Tensor]:
    """Small tables of few different scores, so that ties abound, and unordered uneven captions."""
    n_images, n_captions = draw(st.integers(1, max_images)), draw(st.integers(1, max_captions))
    values = [-1.0, 0.0, 1.0, 2.0, *([math.nan, -math.inf, math.inf] if nan else [])]
    cells = st.sampled_from(values)
    table = draw(st.lists(cells, min_size=n_images * n_captions, max_size=n_images * n_captions))
    rows = st.integers(0, n_images - 1)
    caption_image = draw(st.lists(rows, min_size=n_captions, max_size=n_captions))
    return torch.tensor(table).view(n_images, n_captions), torch.tensor(caption_image)


def orders(scores: list[float]) -> Iterator[tuple[int, ...]]:
    """Every order of the items by falling score that ties allow; NaN counts as minus infinity."""
    scores = [-math.inf if math.isnan(score) else score for score in scores]
    groups = [
        [item for item, score in enumerate(scores) if score == level] for level in sorted(set(scores), reverse=True)
    ]
    for order in itertools.product(*(list(itertools.permutations(group)) for group in groups)):
        yield tuple(itertools.chain.from_iterable(order))


def expected_first_rank(scores: list[float], positives: set[int]) -> float:
    """Mean over all orders of the place of the first positive; the last place if none scores."""
    if not positives:
        return math.nan
    if all(math.isnan(scores[item]) or scores[item] == -math.inf for item in positives):
        return float(len(scores))
    return fmean(1 + min(order.index(item) for item in positives) for order in orders(scores))


def expected_average_precision(scores: list[float], positives: set[int]) -> float:
    """Mean over all orders of 1/R times the sum of the precisions at the positives among the first R."""
    if not positives:
        return math.nan
    scoring = {item for item in positives if not math.isnan(scores[item]) and scores[item] != -math.inf}
    return fmean(
        sum(
            len(scoring & set(order[: place + 1])) / (place + 1)
            for place in range(len(positives))
            if order[place] in scoring
        )
        / len(positives)
        for order in orders(scores)
    )


def both_directions(
    measure: Callable[[list[float], set[int]], float], table: Tensor, caption_image: Tensor
) -> tuple[list[float], list[float]]:
    """A measure of each row with its own captions, and of each column with its own image."""
    owner = caption_image.tolist()
    by_image = [
        measure(row, {caption for caption, image in enumerate(owner) if image == query})
        for query, row in enumerate(table.tolist())
    ]
    by_caption = [measure(column, {owner[query]}) for query, column in enumerate(table.T.tolist())]
    return by_image, by_caption


def random_ranks(n_images: int, caption_image: Tensor, seed: int) -> Ranks:
    """Ranks from 1 to 15 with halves; NaN for the images without captions."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> Tensor:
        return 1 + torch.randint(0, 29, (size,), generator=generator).double() / 2

    image_to_text = draw(n_images)
    image_to_text[caption_image.bincount(minlength=n_images) == 0] = torch.nan
    return Ranks(image_to_text, draw(len(caption_image)))


def assert_equal(actual: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(
        actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12, equal_nan=True
    )
