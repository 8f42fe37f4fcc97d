import pytest
import torch
from evaluation.naive import TableScores, assert_equal, both_directions, expected_first_rank, tables
from hypothesis import given
from hypothesis import strategies as st

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import EmbeddingScores, Ranks, WeightedScores, rank_queries
from modalloy.evaluation.blocks import own_items
from modalloy.evaluation.ties import first_rank

CPU_SCREENS = ((torch.bfloat16, torch.float32), (torch.float32,), (torch.bfloat16,), ())


def sorted_ranks(scores, caption_image: torch.Tensor) -> Ranks:
    """Ranks from the whole matrix of exact scores."""
    table = scores.score(slice(0, scores.n_images), slice(0, scores.n_captions))
    own = own_items(caption_image, slice(0, scores.n_images), slice(0, scores.n_captions))
    return Ranks(first_rank(table, own), first_rank(table.T, own.T))


def assert_same(actual: Ranks, expected: Ranks) -> None:
    assert_equal(actual.image_to_text, expected.image_to_text.tolist())
    assert_equal(actual.text_to_image, expected.text_to_image.tolist())


@given(tables(), st.integers(1, 7), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_ranks_are_the_mean_over_all_orders_at_every_block_size(table, block, dtype):
    scores, caption_image = table
    ranks = rank_queries(TableScores(scores.to(dtype)), caption_image, block)
    by_image, by_caption = both_directions(expected_first_rank, scores, caption_image)
    assert_equal(ranks.image_to_text, by_image)
    assert_equal(ranks.text_to_image, by_caption)


@given(tables(max_images=9, max_captions=12), st.integers(1, 13))
def test_embeddings_rank_like_their_table_even_with_nan(table, block):
    scores, caption_image = table
    image = torch.nan_to_num(scores, nan=torch.nan, posinf=1.0, neginf=-1.0)
    embedded = EmbeddingScores(image, torch.eye(scores.shape[1]))
    assert_same(rank_queries(embedded, caption_image, block), sorted_ranks(embedded, caption_image))


def trained(n_images: int, dim: int, seed: int, noise: float = 1.0):
    """Embeddings of uneven, unordered captions near their images, some without; many exact copies."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n_images, dim, generator=generator)
    image[n_images // 2 : n_images // 2 + 20] = image[:20]
    caption_image = torch.randint(0, n_images - 10, (3 * n_images,), generator=generator)
    text = image[caption_image] + noise * torch.randn(3 * n_images, dim, generator=generator)
    text[100:160] = text[:60]
    text[-30:] = text[30:60]
    return (
        torch.nn.functional.normalize(image, dim=1),
        torch.nn.functional.normalize(text, dim=1),
        caption_image,
    )


@pytest.mark.parametrize("dim", [16, 100, 1024])
@pytest.mark.parametrize("screens", CPU_SCREENS)
@pytest.mark.parametrize("block", [37, 128, 1000])
def test_screened_ranks_are_exact_whatever_the_precision_and_the_block(dim, screens, block, monkeypatch):
    image, text, caption_image = trained(150, dim, seed=dim, noise=3.0)
    scores = EmbeddingScores(image, text)
    expected = sorted_ranks(scores, caption_image)
    monkeypatch.setattr(EmbeddingScores, "screens", screens)
    assert_same(rank_queries(scores, caption_image, block), expected)
    assert not torch.equal(expected.text_to_image, expected.text_to_image.round()), "no ties to test"


@pytest.mark.parametrize("screens", CPU_SCREENS)
def test_undecided_pairs_are_scored_exactly(screens, monkeypatch):
    """All scores within bfloat16's error of each other: only exact scores can order them."""
    generator = torch.Generator().manual_seed(0)
    image = 1 + 1e-4 * torch.randn(80, 64, generator=generator)
    text = 1 + 1e-4 * torch.randn(160, 64, generator=generator)
    caption_image = torch.arange(80).repeat(2)
    scores = EmbeddingScores(image, text)
    monkeypatch.setattr(EmbeddingScores, "screens", screens)
    assert_same(rank_queries(scores, caption_image, 64), sorted_ranks(scores, caption_image))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_ranks_do_not_depend_on_when_screening_gives_up(share, monkeypatch):
    monkeypatch.setattr("modalloy.evaluation.ranks._UNDECIDED_SHARE", share)
    monkeypatch.setattr(EmbeddingScores, "screens", (torch.bfloat16, torch.float32))
    image, text, caption_image = trained(150, 64, seed=3, noise=4.0)
    scores = EmbeddingScores(image, text)
    assert_same(rank_queries(scores, caption_image, 50), sorted_ranks(scores, caption_image))


@pytest.mark.parametrize("dim", [8, 384, 2048])
def test_copies_of_every_item_tie_wherever_they_stand(dim):
    image, text, _ = trained(70, dim, seed=1)
    images, texts = image[:61].repeat(3, 1), text[:61].repeat(3, 1)
    caption_image = torch.arange(183)
    ranks = rank_queries(EmbeddingScores(images, texts), caption_image, 50)
    once = sorted_ranks(EmbeddingScores(image[:61], text[:61]), torch.arange(61))
    # Three copies of each better item stand above, and the two other copies of the truth are level with it.
    for direction in ("image_to_text", "text_to_image"):
        single = getattr(once, direction)
        assert_equal(getattr(ranks, direction), (3 * (single - 1) + 2).repeat(3).tolist())


def test_all_equal_embeddings_rank_in_the_middle():
    ranks = rank_queries(EmbeddingScores(torch.ones(40, 20), torch.ones(80, 20)), torch.arange(80) // 2, 17)
    assert_equal(ranks.text_to_image, [1 + 39 / 2] * 80)
    assert_equal(ranks.image_to_text, [1 + 78 / 3] * 40)


def test_weighted_scores_rank_in_blocks():
    image, text, caption_image = trained(90, 32, seed=5)
    scores = WeightedScores([EmbeddingScores(image, text), EmbeddingScores(image.roll(1, 0), text)], [0.8, 0.2])
    assert_same(rank_queries(scores, caption_image, 40), sorted_ranks(scores, caption_image))


def test_broken_embeddings_never_outrank():
    image, text = torch.eye(4), torch.eye(4)
    image[0] = torch.nan
    text[1] = torch.nan
    ranks = rank_queries(EmbeddingScores(image, text), torch.arange(4))
    assert ranks.image_to_text.tolist() == [4, 4, 1, 1]
    assert ranks.text_to_image.tolist() == [4, 4, 1, 1]


def test_image_without_caption_is_in_the_gallery_but_no_query():
    scores = TableScores(torch.tensor([[0.5, 0.1], [0.9, 0.0], [0.0, 0.7]]))
    ranks = rank_queries(scores, torch.tensor([0, 2]))
    assert_equal(ranks.image_to_text, [1.0, torch.nan, 1.0])
    assert_equal(ranks.text_to_image, [2.0, 1.0])


def test_never_asks_for_more_than_a_block():
    class Watched(TableScores):
        largest = 0

        def score(self, images, captions):
            block = super().score(images, captions)
            Watched.largest = max(Watched.largest, *block.shape)
            return block

    rank_queries(Watched(torch.rand(50, 70)), torch.arange(70) % 50, 16)
    assert 1 <= Watched.largest <= 16


def test_scores_with_a_gradient_rank_too():
    table = torch.rand(3, 3, requires_grad=True)
    assert not rank_queries(TableScores(table), torch.arange(3)).image_to_text.requires_grad


def test_bad_arguments_are_refused():
    scores = TableScores(torch.rand(3, 4))
    with pytest.raises(ConfigError, match="block must be at least 1"):
        rank_queries(scores, torch.tensor([0, 1, 2, 2]), block=0)
    with pytest.raises(DataError, match="4 captions, got 3"):
        rank_queries(scores, torch.tensor([0, 1, 2]))
    with pytest.raises(DataError, match="caption 3 belongs to image row 3"):
        rank_queries(scores, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(DataError, match="at least one image"):
        rank_queries(TableScores(torch.rand(0, 4)), torch.tensor([0, 0, 0, 0]))


@pytest.mark.parametrize("ranks", [[], [0.5, 2.0]])
def test_impossible_ranks_are_refused(ranks):
    with pytest.raises(DataError, match="filled vector of numbers from 1"):
        Ranks(torch.tensor(ranks), torch.ones(2))
