"""Hubness correction: gallery items that lie near every query are held back, as a bank of other queries shows them.

Both methods come down to a number for each gallery item that is taken off its scores, so that they fold into one more
dimension of the retrieval vectors. The bank is of *training* queries; with the evaluated queries themselves a result is
transductive, which must be asked for by that name, and stated beside every figure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.blocks import even_slices
from modalloy.evaluation.metrics import metrics
from modalloy.evaluation.ranks import DIRECTIONS, Direction, rank_queries
from modalloy.evaluation.scores import ScoreFunction

Bank = ScoreFunction | Literal["transductive"]
"""Scores of the bank's queries with the gallery: training captions with the gallery's images ("text_to_image"), or
training images with its captions ("image_to_text"); or "transductive", for the evaluated queries themselves."""

_BLOCK = 1024


class BiasedScores:
    """Scores less a bias of each gallery item, in one direction of retrieval.

    Args:
        scores: the scores of images against captions.
        bias: a finite number for each caption ("image_to_text") or image ("text_to_image").
        direction: the one to rank by these scores; the other has another gallery, and so another bias.
        queries: for which queries the bias counts; by default for all.
        transductive: whether the bias comes from the evaluated queries themselves.

    Raises:
        DataError: there isn't one finite bias for each gallery item.

    >>> from modalloy.evaluation.scores import EmbeddingScores
    >>> biased = BiasedScores(EmbeddingScores(torch.eye(2), torch.eye(2)), torch.tensor([0.5, 0.0]), "text_to_image")
    >>> biased.score(slice(0, 2), slice(0, 2))
    tensor([[ 0.5000, -0.5000],
            [ 0.0000,  1.0000]])
    """

    def __init__(
        self,
        scores: ScoreFunction,
        bias: Float[Tensor, " items"],
        direction: Direction,
        queries: Bool[Tensor, " queries"] | None = None,
        transductive: bool = False,
    ):
        items, _ = _sizes(scores, direction)
        if len(bias) != items or not bool(bias.isfinite().all()):
            raise DataError(f"expected a finite bias for each of {items} gallery items, got {len(bias)} numbers")
        self._scores = scores
        self._bias = bias.double()
        self._direction = direction
        self._queries = queries
        self.transductive = transductive

    @property
    def n_images(self) -> int:
        """Rows of the score matrix."""
        return self._scores.n_images

    @property
    def n_captions(self) -> int:
        """Columns of the score matrix."""
        return self._scores.n_captions

    def score(self, images: slice, captions: slice) -> Float[Tensor, "images captions"]:
        """Return one block, its difference rounded as the scores are."""
        block = self._scores.score(images, captions)
        items, queries = (images, captions) if self._direction == "text_to_image" else (captions, images)
        bias = self._bias[items, None].to(block.device)
        if self._queries is not None:
            bias = bias * self._queries[None, queries].to(block.device)
        return (block.double() - (bias if self._direction == "text_to_image" else bias.T)).to(block.dtype)


@dataclass(frozen=True)
class NearestNeighbours:
    """The settings of nearest-neighbour normalisation, for one direction."""

    k: int
    """How many of the bank's queries, those nearest to a gallery item, its bias is the mean over."""
    alpha: float
    """How much of that mean is taken off; 0 for nothing."""

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 <= self.alpha < float("inf"):
            raise ConfigError(f"k must be at least 1 and alpha at least 0, got {self.k} and {self.alpha}")


def nearest_neighbour_scores(
    scores: ScoreFunction, bank: Bank, direction: Direction, settings: NearestNeighbours
) -> BiasedScores:
    """Nearest-neighbour normalisation: s(q, g) - alpha * mean of g's k highest scores with the bank (NNN).

    Source: Chowdhury et al., "Nearest Neighbor Normalization Improves Multimodal Retrieval", EMNLP 2024.

    Args:
        scores: the scores of images against captions.
        bank: see `Bank`.
        direction: what the queries and the gallery are.
        settings: see `NearestNeighbours`, `tune_nearest_neighbours`.

    Raises:
        ConfigError: k exceeds the bank, or the bank is the evaluated queries without saying so.
        DataError: the bank's gallery isn't that of the scores, or no score with it is a number.

    >>> from modalloy.evaluation.scores import EmbeddingScores
    >>> images, captions, bank = torch.eye(2), torch.tensor([[0.6, 0.8]]), torch.tensor([[0.0, 1.0], [0.0, 0.8]])
    >>> scores, bank_scores = EmbeddingScores(images, captions), EmbeddingScores(images, bank)
    >>> corrected = nearest_neighbour_scores(scores, bank_scores, "text_to_image", NearestNeighbours(k=2, alpha=0.5))
    >>> corrected.score(slice(0, 2), slice(0, 1))
    tensor([[0.6000],
            [0.3500]])
    """
    bias = nearest_neighbour_bias(_bank(scores, bank, direction), direction, settings)
    return BiasedScores(scores, bias, direction, transductive=bank == "transductive")


def nearest_neighbour_bias(
    bank: ScoreFunction, direction: Direction, settings: NearestNeighbours
) -> Float[Tensor, " items"]:
    """What `nearest_neighbour_scores` takes off the scores of each gallery item.

    Raises:
        ConfigError: k exceeds the bank.
        DataError: no score with the bank is a number.
    """
    return settings.alpha * _mean(_nearest(bank, direction, settings.k))


def tune_nearest_neighbours(
    scores: ScoreFunction,
    bank: ScoreFunction,
    direction: Direction,
    caption_image: Int[Tensor, " captions"],
    ks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128),
    alphas: Sequence[float] = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0),
) -> NearestNeighbours:
    """The settings with the highest R@1 + R@5 + R@10 of one direction; of equals the least alpha, then the least k.

    Args:
        scores: the scores of the validation part.
        bank: see `Bank`; never the validation queries themselves, which would make any correction look good.
        direction: what the queries and the gallery are.
        caption_image: row of each caption's image, of the validation part.
        ks: what to try; those that exceed the bank are left out.
        alphas: what to try.

    Raises:
        ConfigError: nothing is left to try, or see `nearest_neighbour_scores`.
        DataError: see `nearest_neighbour_scores`.
    """
    bank = _bank(scores, bank, direction)
    usable = sorted(k for k in ks if 1 <= k <= _sizes(bank, direction)[1])
    if not usable or not alphas:
        raise ConfigError(
            f"there is nothing to try: k in {list(ks)} of {_sizes(bank, direction)[1]} queries in the bank"
        )
    nearest = _nearest(bank, direction, usable[-1])

    def rsum(settings: NearestNeighbours) -> float:
        biased = BiasedScores(scores, settings.alpha * _mean(nearest[:, : settings.k]), direction)
        return getattr(metrics(rank_queries(biased, caption_image)), direction).rsum

    # Without a correction k decides nothing.
    tried = [NearestNeighbours(k, alpha) for alpha in sorted(alphas) for k in (usable if alpha else usable[:1])]
    return max(tried, key=rsum)


def inverted_softmax_scores(
    scores: ScoreFunction, bank: Bank, direction: Direction, beta: float = 20.0, dynamic: bool = True
) -> BiasedScores:
    """The inverted softmax with a query bank: s(q, g) - log(sum over the bank of exp(beta s(b, g))) / beta.

    Its order is that of exp(beta s(q, g)) / sum over b of exp(beta s(b, g)). The dynamic form (QB-Norm) corrects only
    the queries whose first answer is also the first answer of a query in the bank. With bank="transductive" and without
    `dynamic` it is the dual softmax.

    Source: Bogolin et al., "Cross Modal Retrieval with Querybank Normalisation", CVPR 2022.

    Args:
        scores: the scores of images against captions.
        bank: see `Bank`.
        direction: what the queries and the gallery are.
        beta: inverse temperature; the paper's is 20.
        dynamic: whether the other queries keep their scores.

    Raises:
        ConfigError: beta isn't above 0, or the bank is the evaluated queries without saying so.
        DataError: the bank's gallery isn't that of the scores, or no score with it is a number.
    """
    if not 0 < beta < float("inf"):
        raise ConfigError(f"beta must be above 0, got {beta}")
    queries_bank = _bank(scores, bank, direction)
    parts = [
        torch.stack([(beta * block.double()).logsumexp(1) for block in blocks]).logsumexp(0) / beta
        for _, blocks in _gallery_blocks(queries_bank, direction)
    ]
    queries = None
    if dynamic:
        activated, answers = _first_answers(queries_bank, direction), _first_answers(scores, direction)
        queries = torch.isin(answers, activated[activated >= 0])
    return BiasedScores(scores, _known(torch.cat(parts)), direction, queries, transductive=bank == "transductive")


def _bank(scores: ScoreFunction, bank: Bank, direction: Direction) -> ScoreFunction:
    """The bank's scores, checked."""
    if direction not in DIRECTIONS:
        raise ConfigError(f"direction must be image_to_text or text_to_image, got {direction!r}")
    if isinstance(bank, str):
        if bank != "transductive":
            raise ConfigError(f"a bank is a score function or 'transductive', got {bank!r}")
        return scores
    if bank is scores:
        raise ConfigError(
            "the bank is the evaluated queries themselves, which makes a result transductive: say bank='transductive', "
            "or take the scores of training queries"
        )
    items, expected = _sizes(bank, direction)[0], _sizes(scores, direction)[0]
    if items != expected:
        raise DataError(f"the bank is scored with {items} gallery items, expected the {expected} of the scores")
    return bank


def _sizes(scores: ScoreFunction, direction: Direction) -> tuple[int, int]:
    """The numbers of gallery items and of queries."""
    sizes = (scores.n_images, scores.n_captions)
    return sizes if direction == "text_to_image" else sizes[::-1]


def _gallery_blocks(
    scores: ScoreFunction, direction: Direction
) -> Iterator[tuple[slice, Iterator[Float[Tensor, "items queries"]]]]:
    """For some gallery items at a time their scores with some queries at a time; -inf for what is no number."""
    items, queries = (even_slices(size, _BLOCK) for size in _sizes(scores, direction))

    def block(rows: slice, columns: slice) -> Float[Tensor, "items queries"]:
        found = scores.score(rows, columns) if direction == "text_to_image" else scores.score(columns, rows).T
        return found.masked_fill(~found.isfinite(), -torch.inf).cpu()

    for rows in items:
        yield rows, (block(rows, columns) for columns in queries)


def _nearest(bank: ScoreFunction, direction: Direction, k: int) -> Float[Tensor, "items k"]:
    """Each gallery item's k highest scores with the bank, the highest first."""
    queries = _sizes(bank, direction)[1]
    if k > queries:
        raise ConfigError(f"k must be at most the {queries} queries of the bank, got {k}")

    def nearest_of(found: Float[Tensor, "items queries"]) -> Float[Tensor, "items found"]:
        return found.topk(min(k, found.shape[1]), dim=1).values

    parts = []
    for _, blocks in _gallery_blocks(bank, direction):
        best = nearest_of(next(blocks))
        for block in blocks:
            best = nearest_of(torch.cat([best, block], dim=1))
        parts.append(best)
    return torch.cat(parts)


def _mean(nearest: Float[Tensor, "items k"]) -> Float[Tensor, " items"]:
    """The mean of the scores that are numbers."""
    numbers = nearest.isfinite()
    return _known(nearest.double().masked_fill(~numbers, 0).sum(1) / numbers.sum(1))


def _known(bias: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
    """No bias for an item that has no score with any query: it is broken, and scores nowhere anyhow."""
    known = bias.isfinite()
    if not bool(known.any()):
        raise DataError("no score of the bank with the gallery is a number; check the bank's queries")
    return bias.masked_fill(~known, 0)


def _first_answers(scores: ScoreFunction, direction: Direction) -> Int[Tensor, " queries"]:
    """Each query's gallery item with the highest score, the first of equals; -1 where no score is a number."""
    size = _sizes(scores, direction)[1]
    best, answers = torch.full((size,), -torch.inf), torch.full((size,), -1)
    for items, blocks in _gallery_blocks(scores, direction):
        highest, rows = (torch.cat(parts) for parts in zip(*(block.max(0) for block in blocks), strict=True))
        better = highest > best
        best[better], answers[better] = highest[better].to(best.dtype), rows[better] + items.start
    return answers
