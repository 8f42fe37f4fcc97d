"""Ranks within folds, against ranking each fold by itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import EmbeddingScores, metrics, rank_in_folds, rank_queries


def embeddings(images: int, captions: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, 4, generator=generator), torch.randn(captions, 4, generator=generator)


@given(st.data(), st.integers(1, 4), st.integers(1, 3))
def test_a_fold_is_ranked_as_if_it_were_alone(data, fold_size, folds):
    counts = [data.draw(st.integers(0, 3)) for _ in range(fold_size * folds)]
    for fold in range(folds):  # each fold has a caption, or there would be nothing to rank
        counts[fold * fold_size] += 1
    image_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    # Within a fold the captions may stand in any order.
    order = torch.cat([(image_of // fold_size == fold).nonzero()[:, 0].flip(0) for fold in range(folds)])
    image_of = image_of[order]
    image, text = embeddings(len(counts), len(image_of))
    found = rank_in_folds(EmbeddingScores(image, text), image_of, fold_size)
    for fold in range(folds):
        images, captions = slice(fold * fold_size, (fold + 1) * fold_size), image_of // fold_size == fold
        alone = rank_queries(EmbeddingScores(image[images], text[captions]), image_of[captions] - images.start)
        assert torch.equal(found.text_to_image[captions], alone.text_to_image)
        torch.testing.assert_close(found.image_to_text[images], alone.image_to_text, rtol=0, atol=0, equal_nan=True)


def test_its_recall_is_the_mean_of_the_folds():
    image, text = embeddings(20, 60)
    image_of = torch.arange(20).repeat_interleave(3)
    found = metrics(rank_in_folds(EmbeddingScores(image, text), image_of, 10))
    folds = [
        metrics(rank_queries(EmbeddingScores(image[i : i + 10], text[3 * i : 3 * i + 30]), image_of[:30]))
        for i in (0, 10)
    ]
    assert found.rsum == pytest.approx(sum(each.rsum for each in folds) / 2)


def test_one_fold_is_the_whole():
    image, text = embeddings(6, 12)
    scores, image_of = EmbeddingScores(image, text), torch.arange(6).repeat_interleave(2)
    whole = rank_queries(scores, image_of)
    assert torch.equal(rank_in_folds(scores, image_of, 6).text_to_image, whole.text_to_image)


@pytest.mark.parametrize(
    ("image_of", "size", "error", "message"),
    [
        ([0, 1, 2, 3], 0, ConfigError, "fold_size must be at least 1 image, got 0"),
        ([0, 1, 2, 3], 3, DataError, "4 images don't make folds of 3; .* multiple"),
        ([2, 0, 1, 3], 2, DataError, "captions of a fold's images must stand together"),
        ([0, 1, 1, 1], 2, DataError, "at least one image and one caption, got 2 images and 0 captions"),
    ],
)
def test_bad_folds_are_refused(image_of, size, error, message):
    scores = EmbeddingScores(*embeddings(4, 4))
    with pytest.raises(error, match=message):
        rank_in_folds(scores, torch.tensor(image_of), size)
