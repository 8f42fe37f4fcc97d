import math

import pytest
import torch
from evaluation.naive import TableScores, assert_equal, expected_first_rank, tables
from hypothesis import given
from hypothesis import strategies as st

from modalloy.errors import DataError
from modalloy.evaluation import Ranks, metrics, rank_queries, rerank_ranks


def naive(candidates, scores, caption_image, n_images, direction):
    """Expected rank among the candidates that have a score; infinite without a positive among them."""
    owner = caption_image.tolist()
    ranks = []
    for query, (row, values) in enumerate(zip(candidates.tolist(), scores.tolist(), strict=True)):
        alive = [
            (item, value)
            for item, value in zip(row, values, strict=True)
            if item >= 0 and not math.isnan(value) and value != -math.inf
        ]
        if direction == "image_to_text":
            positives = {place for place, (item, _) in enumerate(alive) if owner[item] == query}
            asked = query in owner
        else:
            positives = {place for place, (item, _) in enumerate(alive) if item == owner[query]}
            asked = True
        found = expected_first_rank([value for _, value in alive], positives) if positives else math.inf
        ranks.append(found if asked else math.nan)
    return ranks


@given(tables(), st.integers(1, 6), st.randoms(use_true_random=False))
def test_ranks_among_candidates_and_misses_beyond(table, width, random):
    scores, caption_image = table
    for direction, rows in (("image_to_text", scores), ("text_to_image", scores.T)):
        items = [random.sample([*range(rows.shape[1]), *[-1] * width], width) for _ in range(len(rows))]
        candidates = torch.tensor(items)
        values = rows.gather(1, candidates.clamp(min=0))
        ranks = rerank_ranks(candidates, values, caption_image, len(scores), direction)
        assert_equal(ranks, naive(candidates, values, caption_image, len(scores), direction))


@given(tables(nan=False))
def test_all_items_as_candidates_rank_as_without_a_second_stage(table):
    scores, caption_image = table
    n_images, n_captions = scores.shape
    single = rank_queries(TableScores(scores), caption_image)
    captions, images = (
        torch.arange(n_captions).repeat(n_images, 1),
        torch.arange(n_images).repeat(n_captions, 1),
    )
    by_image = rerank_ranks(captions, scores, caption_image, n_images, "image_to_text")
    by_caption = rerank_ranks(images, scores.T, caption_image, n_images, "text_to_image")
    assert_equal(by_image, single.image_to_text.tolist())
    assert_equal(by_caption, single.text_to_image.tolist())


def test_a_perfect_second_stage_does_not_save_random_candidates():
    """The second stage always prefers the truth, but random candidates hold it only once in ten."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(500)
    candidates = torch.rand(500, 500, generator=generator).argsort(1)[:, :50]
    second_stage = (candidates == truth[:, None]).float()
    by_caption = rerank_ranks(candidates, second_stage, truth, 500, "text_to_image")
    by_image = rerank_ranks(candidates, second_stage, truth, 500, "image_to_text")
    result = metrics(Ranks(by_image, by_caption))
    for side in (result.image_to_text, result.text_to_image):
        assert side.recall_1 == side.recall_10 == pytest.approx(10, abs=4)
        assert side.median_rank == math.inf
        assert side.to_dict()["mean_rank"] is None


@pytest.mark.parametrize(
    ("candidates", "scores", "message"),
    [
        ([[0, 1]], [[0.5, 0.1]], "2 queries"),
        ([[0, 1], [1, 0]], [[0.5], [0.1]], r"\(2, 2\) and \(2, 1\)"),
        ([[0, 2], [1, 0]], [[0.5, 0.1], [0.5, 0.1]], "rows from 0 to 1"),
        ([[0, -2], [1, 0]], [[0.5, 0.1], [0.5, 0.1]], "-1 for an empty place, got -2"),
        ([[0, 1], [1, 1]], [[0.5, 0.1], [0.5, 0.1]], "query 1 has one twice"),
    ],
)
def test_bad_candidates_are_refused(candidates, scores, message):
    with pytest.raises(DataError, match=message):
        rerank_ranks(
            torch.tensor(candidates),
            torch.tensor(scores),
            torch.arange(2),
            n_images=2,
            direction="text_to_image",
        )


def test_no_place_for_candidates_is_refused():
    with pytest.raises(DataError, match="at least one place"):
        rerank_ranks(torch.empty(2, 0, dtype=torch.int64), torch.empty(2, 0), torch.arange(2), 2, "text_to_image")
