import pytest
import torch
from evaluation.naive import TableScores

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import EmbeddingScores, ScoreFunction, ScreenedScores, WeightedScores

EVERYTHING = slice(0, 1000)


def embeddings(n_images=60, n_captions=90, dim=48, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        scale * torch.randn(n_images, dim, generator=generator),
        torch.randn(n_captions, dim, generator=generator),
    )


def test_protocols_tell_the_kinds_apart():
    table = TableScores(torch.zeros(2, 3))
    assert isinstance(table, ScoreFunction)
    assert not isinstance(table, ScreenedScores)
    assert isinstance(EmbeddingScores(*embeddings()), ScreenedScores)


def test_score_is_the_rounded_exact_product():
    image, text = embeddings()
    scores = EmbeddingScores(image, text)
    exact = (image.double() @ text.double().T).float()
    assert torch.equal(scores.score(EVERYTHING, EVERYTHING), exact)
    rows, columns = torch.arange(60).repeat_interleave(90), torch.arange(90).repeat(60)
    assert torch.equal(scores.pairs(rows, columns), exact.flatten())


@pytest.mark.parametrize("dim", [1, 17, 700, 5000])
def test_pairs_equal_blocks_at_any_width(dim):
    image, text = embeddings(3, 400, dim)
    scores = EmbeddingScores(image, text)
    rows, columns = torch.arange(3).repeat_interleave(400), torch.arange(400).repeat(3)
    assert torch.equal(scores.pairs(rows, columns).view(3, 400), scores.score(EVERYTHING, EVERYTHING))


@pytest.mark.parametrize("dim", [16, 300, 4096])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e12, 3e30])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_screen_keeps_its_bound(dim, scale, precision):
    image, text = embeddings(64, 128, dim, scale)
    # A shared direction makes the rounding errors add up instead of cancelling.
    image += scale
    text += 1.003
    block, margin = EmbeddingScores(image, text).screen(EVERYTHING, EVERYTHING, precision)
    exact = image.double() @ text.double().T
    low, high = ((exact + edge).to(precision).float() for edge in (-margin, margin))
    assert bool(((low <= block) & (block <= high)).all())
    if scale == 1.0:
        largest = float(image.norm(dim=1).max() * text.norm(dim=1).max())
        assert margin < largest * (0.01 if precision == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [16, 33, 2048])
@pytest.mark.parametrize("sides", [(1, 1), (1, 40), (40, 1), (2, 3), (5, 5), (17, 33)])
def test_screen_keeps_its_bound_in_small_blocks(sides, dim, precision):
    """Small products may take other routes through the libraries."""
    image, text = (part + 1 for part in embeddings(*sides, dim))
    block, margin = EmbeddingScores(image, text).screen(EVERYTHING, EVERYTHING, precision)
    exact = image.double() @ text.double().T
    low, high = ((exact + edge).to(precision).float() for edge in (-margin, margin))
    assert bool(((low <= block) & (block <= high)).all())


def test_screens_need_finite_products_and_full_products(monkeypatch):
    image, text = embeddings()
    assert torch.float32 in EmbeddingScores(image, text).screens
    for value in (torch.nan, torch.inf, 3e38):
        broken = image.clone()
        broken[3, 4] = value
        assert EmbeddingScores(broken, text).screens == ()
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert torch.float32 not in EmbeddingScores(image, text).screens
    assert EmbeddingScores(image[:, :8], text[:, :8]).screens == ()


def test_embeddings_of_other_precisions_and_with_gradients():
    image, text = embeddings()
    scores = EmbeddingScores(image.double().requires_grad_(), text.half())
    block = scores.score(EVERYTHING, EVERYTHING)
    assert block.dtype == torch.float32
    assert not block.requires_grad


def test_weighted_scores_sum_their_parts():
    parts = [EmbeddingScores(*embeddings(seed=seed)) for seed in range(3)]
    weights = [0.5, -0.25, 2.0]
    expected = sum(
        weight * part.score(EVERYTHING, EVERYTHING).double() for weight, part in zip(weights, parts, strict=True)
    )
    weighted = WeightedScores(parts, weights)
    assert (weighted.n_images, weighted.n_captions) == (60, 90)
    assert torch.equal(weighted.score(slice(7, 20), slice(3, 90)), expected.float()[7:20, 3:])


def test_weighted_scores_equal_the_folded_vectors():
    pairs = [embeddings(seed=seed) for seed in range(2)]
    weights = [0.7, 0.3]
    folded = EmbeddingScores(
        torch.cat([weight**0.5 * image for weight, (image, _) in zip(weights, pairs, strict=True)], 1),
        torch.cat([weight**0.5 * text for weight, (_, text) in zip(weights, pairs, strict=True)], 1),
    )
    weighted = WeightedScores([EmbeddingScores(*pair) for pair in pairs], weights)
    torch.testing.assert_close(
        folded.score(EVERYTHING, EVERYTHING), weighted.score(EVERYTHING, EVERYTHING), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), "got 3 and 4 dimensions"),
        (torch.ones(0, 3), torch.ones(2, 3), r"image embeddings .* got shape \(0, 3\)"),
        (torch.ones(2, 3), torch.ones(2, 0), r"text embeddings .* got shape \(2, 0\)"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(image, text, message):
    with pytest.raises(DataError, match=message):
        EmbeddingScores(image, text)


def test_weighted_scores_that_do_not_fit_are_refused():
    part = TableScores(torch.zeros(2, 3))
    for parts, weights in (([], []), ([part], [0.5, 0.5]), ([part], [torch.nan])):
        with pytest.raises(ConfigError, match="one finite weight for each"):
            WeightedScores(parts, weights)
    with pytest.raises(DataError, match=r"\(2, 3\), \(3, 3\)"):
        WeightedScores([part, TableScores(torch.zeros(3, 3))], [0.5, 0.5])
