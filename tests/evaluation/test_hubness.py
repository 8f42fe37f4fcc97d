import math
from statistics import fmean

import pytest
import torch
from evaluation.naive import TableScores, assert_equal, both_directions, expected_first_rank, tables
from hypothesis import assume, given
from hypothesis import strategies as st

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import (
    BiasedScores,
    EmbeddingScores,
    NearestNeighbours,
    Ranks,
    WeightedScores,
    bootstrap_interval,
    inverted_softmax_scores,
    metrics,
    nearest_neighbour_bias,
    nearest_neighbour_scores,
    rank_each_direction,
    rank_queries,
    tune_nearest_neighbours,
)
from modalloy.evaluation import hubness as module
from modalloy.evaluation.ranks import DIRECTIONS

EVERY = slice(None)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 2)


def whole(scores):
    return scores.score(slice(0, scores.n_images), slice(0, scores.n_captions))


def random_table(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def oriented(table: torch.Tensor, direction: str) -> torch.Tensor:
    """Gallery items in rows, queries in columns; and back."""
    return table if direction == "text_to_image" else table.T


def bank_for(scores: torch.Tensor, direction: str, queries: int, seed: int) -> torch.Tensor:
    """Scores of other queries with the same gallery, as images x captions."""
    items = len(oriented(scores, direction))
    return oriented(random_table(items, queries, seed), direction)


def naive_bias(bank: torch.Tensor, k: int, alpha: float) -> list[float]:
    return [
        alpha * fmean(sorted((score for score in row if math.isfinite(score)), reverse=True)[:k])
        if any(map(math.isfinite, row))
        else 0.0
        for row in bank.tolist()
    ]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("k", "alpha"), [(1, 1.0), (3, 0.5), (7, 0.25)])
def test_the_mean_of_the_nearest_of_the_bank_is_taken_off(direction, k, alpha):
    table = random_table(5, 6, seed=0)
    bank = bank_for(table, direction, queries=7, seed=1)
    settings = NearestNeighbours(k, alpha)
    found = nearest_neighbour_scores(TableScores(table), TableScores(bank), direction, settings)
    bias = naive_bias(oriented(bank, direction), k, alpha)
    expected = [
        [score - taken for score in row] for row, taken in zip(oriented(table, direction).tolist(), bias, strict=True)
    ]
    torch.testing.assert_close(oriented(whole(found), direction), torch.tensor(expected), rtol=0, atol=1e-6)
    assert not found.transductive
    assert torch.equal(found.score(slice(1, 3), slice(2, 5)), whole(found)[1:3, 2:5])
    assert_equal(nearest_neighbour_bias(TableScores(bank), direction, settings), bias)


@given(tables(), tables(), st.sampled_from(DIRECTIONS), st.sampled_from([1, 2]))
def test_without_alpha_nothing_changes_whatever_the_scores_are(table, other, direction, k):
    scores, caption_image = table
    items = len(oriented(scores, direction))
    cells = other[0].flatten()
    bank = oriented(cells.repeat(2 * items)[: 2 * items].view(items, 2), direction)
    assume(bool(bank.isfinite().any()))
    found = nearest_neighbour_scores(TableScores(scores), TableScores(bank), direction, NearestNeighbours(k, 0.0))
    assert torch.equal(whole(found).nan_to_num(9, 8, 7), scores.nan_to_num(9, 8, 7))
    expected, got = (rank_queries(each, caption_image) for each in (TableScores(scores), found))
    assert_equal(getattr(got, direction), getattr(expected, direction).tolist())


@given(tables(), st.integers(0, 99), st.sampled_from(DIRECTIONS))
def test_ties_and_broken_scores_keep_their_rules(table, seed, direction):
    """Small whole numbers, so that corrected scores tie; what is broken in the bank takes nothing off."""
    scores, caption_image = table
    items = len(oriented(scores, direction))
    bank = torch.randint(0, 3, (items, 4), generator=torch.Generator().manual_seed(seed)).float()
    bank[0, 0], bank[-1] = math.nan, math.inf
    bank[0, 1] = 1.0
    found = nearest_neighbour_scores(
        TableScores(scores), TableScores(oriented(bank, direction)), direction, NearestNeighbours(1, 1.0)
    )
    bias = torch.tensor(naive_bias(bank, 1, 1.0))
    expected = oriented(oriented(scores, direction) - bias[:, None], direction)
    by_image, by_caption = both_directions(expected_first_rank, expected, caption_image)
    ranks = rank_queries(found, caption_image, block=3)
    assert_equal(getattr(ranks, direction), by_image if direction == "image_to_text" else by_caption)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_inverted_softmax_of_its_definition(direction, dynamic):
    beta = 3.0
    table = random_table(6, 5, seed=2)
    bank = bank_for(table, direction, queries=3, seed=3)
    found = inverted_softmax_scores(TableScores(table), TableScores(bank), direction, beta, dynamic)
    gallery, queries = oriented(bank, direction).tolist(), oriented(table, direction).T.tolist()
    first = {max(range(len(gallery)), key=lambda item: gallery[item][query]) for query in range(3)}
    corrected = 0
    for number, query in enumerate(queries):
        softmax = [
            math.exp(beta * score) / sum(math.exp(beta * other) for other in row)
            for score, row in zip(query, gallery, strict=True)
        ]
        concerned = not dynamic or query.index(max(query)) in first
        corrected += concerned
        expected = softmax if concerned else query
        got = oriented(whole(found), direction)[:, number]
        assert got.argsort().tolist() == sorted(range(len(expected)), key=expected.__getitem__)
        if concerned:
            torch.testing.assert_close((beta * got).exp(), torch.tensor(softmax))
        else:
            assert got.tolist() == query
    # Of the dynamic form both cases must occur.
    assert 0 < corrected < len(queries) if dynamic else corrected == len(queries)


def test_the_transductive_form_is_the_dual_softmax_and_must_be_asked_for():
    table = random_table(4, 5, seed=4)
    scores = TableScores(table)
    found = inverted_softmax_scores(scores, "transductive", "text_to_image", 5.0, dynamic=False)
    # Each image's softmax over all queries: what it says of an image depends on the other queries.
    assert found.transductive and torch.equal(whole(found).argsort(0), (5 * table).softmax(1).argsort(0))
    settings = NearestNeighbours(2, 1.0)
    assert nearest_neighbour_scores(scores, "transductive", "text_to_image", settings).transductive
    for correct in (
        lambda: nearest_neighbour_scores(scores, scores, "text_to_image", settings),
        lambda: inverted_softmax_scores(scores, scores, "text_to_image"),
        lambda: tune_nearest_neighbours(scores, scores, "text_to_image", torch.tensor([0, 1, 2, 3, 3])),
    ):
        with pytest.raises(ConfigError, match="makes a result transductive"):
            correct()


def hub_world():
    """Images and captions in a plane, one image a hub near every caption; and a bank of other captions."""
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(20, 8, generator=generator), dim=1)
    images[0] = images.sum(0) / images.sum(0).norm() * 1.6
    captions = images + 0.5 * torch.randn(20, 8, generator=generator)
    bank = images[torch.arange(60) % 20] + 0.8 * torch.randn(60, 8, generator=generator)
    return EmbeddingScores(images, captions), EmbeddingScores(images, bank), torch.arange(20)


def test_tuning_takes_the_best_on_validation():
    scores, bank, caption_image = hub_world()

    def rsum(settings):
        found = nearest_neighbour_scores(scores, bank, "text_to_image", settings)
        return metrics(rank_queries(found, caption_image)).text_to_image.rsum

    ks, alphas = (4, 1, 99, 16), (1.0, 0.0, 0.5)
    tuned = tune_nearest_neighbours(scores, bank, "text_to_image", caption_image, ks, alphas)
    tried = {(alpha, k): rsum(NearestNeighbours(k, alpha)) for alpha in alphas for k in (1, 4, 16)}
    assert (tuned.alpha, tuned.k) == min(key for key, value in tried.items() if value == max(tried.values()))
    assert rsum(tuned) > rsum(NearestNeighbours(1, 0.0))
    nothing = tune_nearest_neighbours(scores, bank, "text_to_image", caption_image, (1, 2), (0.0,))
    assert nothing == NearestNeighbours(1, 0.0)
    with pytest.raises(ConfigError, match="nothing to try"):
        tune_nearest_neighbours(scores, bank, "text_to_image", caption_image, ks=(61,))


def test_each_direction_is_ranked_by_its_own_scores():
    first, second, caption_image = random_table(4, 6, 5), random_table(4, 6, 6), torch.tensor([0, 1, 2, 3, 0, 1])
    ranks = rank_each_direction(
        {"image_to_text": TableScores(first), "text_to_image": TableScores(second)}, caption_image, block=3
    )
    assert torch.equal(ranks.image_to_text, rank_queries(TableScores(first), caption_image).image_to_text)
    assert torch.equal(ranks.text_to_image, rank_queries(TableScores(second), caption_image).text_to_image)
    # Which are ranks as any other.
    assert isinstance(ranks, Ranks) and bootstrap_interval(ranks, caption_image, samples=20).low <= metrics(ranks).rsum


def test_any_score_function_can_be_corrected():
    scores, bank, _ = hub_world()
    settings = NearestNeighbours(4, 1.0)
    weighted = nearest_neighbour_scores(
        WeightedScores([scores, scores], [0.5, 0.5]),
        WeightedScores([bank, bank], [0.5, 0.5]),
        "text_to_image",
        settings,
    )
    plain = nearest_neighbour_scores(scores, bank, "text_to_image", settings)
    torch.testing.assert_close(whole(weighted), whole(plain))


def test_bad_arguments_are_refused():
    scores, bank = TableScores(random_table(3, 4, 0)), TableScores(random_table(3, 5, 1))
    one = NearestNeighbours(1, 1.0)
    with pytest.raises(ConfigError, match="k must be at most the 5 queries of the bank, got 6"):
        nearest_neighbour_scores(scores, bank, "text_to_image", NearestNeighbours(6, 1.0))
    with pytest.raises(DataError, match="scored with 5 gallery items, expected the 4 of the scores"):
        nearest_neighbour_scores(scores, bank, "image_to_text", one)
    for correct in (nearest_neighbour_scores, inverted_softmax_scores):
        broken = TableScores(torch.full((3, 5), math.nan))
        with pytest.raises(DataError, match="no score of the bank"):
            correct(scores, broken, "text_to_image", *([one] if correct is nearest_neighbour_scores else []))
    for beta in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="beta must be above 0"):
            inverted_softmax_scores(scores, bank, "text_to_image", beta)
    for k, alpha in ((0, 1.0), (1, -0.5), (1, math.nan), (1, math.inf)):
        with pytest.raises(ConfigError, match="k must be at least 1 and alpha at least 0"):
            NearestNeighbours(k, alpha)
    for bias in (torch.zeros(4), torch.tensor([0.0, math.nan, 0.0])):
        with pytest.raises(DataError, match="a finite bias for each of 3 gallery items"):
            BiasedScores(scores, bias, "text_to_image")
