import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from modalloy.evaluation import EmbeddingScores, WeightedScores, metrics, rank_queries
from modalloy.fusion.learned_weights import learn_weights
from modalloy.fusion.part_scores import PartScores
from modalloy.fusion.simplex import best_weights, choose_weights


def toy(seed: int, parts: int, images: int = 30):
    """Parts that know different halves of a latent vector, each with noise of its own; the later the worse."""
    generator = torch.Generator().manual_seed(seed)
    caption_image = torch.arange(2 * images) // 2
    latent = torch.randn(images, 8, generator=generator)
    scores = []
    for part in range(parts):
        known = latent.roll(part, dims=1)[:, :4]
        image, text = (
            known[rows] + (0.6 + 0.2 * part) * torch.randn(len(rows), 4, generator=generator)
            for rows in (torch.arange(images), caption_image)
        )
        scores.append(EmbeddingScores(normalize(image, dim=-1), normalize(text, dim=-1)))
    return scores, caption_image


def rsum(scores, caption_image, weights) -> float:
    return metrics(rank_queries(WeightedScores(scores, weights), caption_image)).rsum


def whole_grid(parts: int, steps: int) -> list[tuple[float, ...]]:
    """All weights in multiples of 1/`steps` that sum to 1, the even ones first."""
    counts = [each for each in itertools.product(range(steps + 1), repeat=parts) if sum(each) == steps]
    return [tuple(count / steps for count in each) for each in sorted(counts, key=lambda each: (max(each), each))]


@given(parts=st.integers(1, 3), steps=st.integers(1, 5), seed=st.integers(0, 2**16))
@settings(max_examples=10)
def test_few_parts_get_the_very_weights_of_the_whole_grid(parts, steps, seed):
    scores, caption_image = toy(seed, parts, images=12)
    first_best = max(whole_grid(parts, steps), key=lambda weights: rsum(scores, caption_image, weights))
    assert best_weights(PartScores(scores, caption_image), steps) == first_best


@pytest.mark.parametrize("seed", range(2))
def test_four_parts_reach_nearly_the_best_of_the_whole_grid(seed):
    scores, caption_image = toy(seed, 4, images=20)
    parts = PartScores(scores, caption_image)
    found = best_weights(parts, steps=8)
    best = max(map(parts.rsum, whole_grid(4, 8)))
    # One hit among the 20 images or the 40 captions is 5 or 2.5 points.
    assert best - 5 < parts.rsum(found) <= best
    assert sum(found) == pytest.approx(1) and min(found) >= 0
    assert parts.rsum(found) >= max(parts.rsum(row) for row in torch.eye(4).tolist())


def test_eight_parts_take_few_evaluations(monkeypatch):
    scores, caption_image = toy(0, 8, images=15)
    parts, asked = PartScores(scores, caption_image), []
    monkeypatch.setattr(parts, "rsum", lambda weights: asked.append(tuple(weights)) or PartScores.rsum(parts, weights))
    found = best_weights(parts, steps=10)
    assert len(asked) == len(set(asked)) < 700 < math.comb(17, 7) / 25
    start = PartScores.rsum(parts, [1 / 8] * 8)
    assert PartScores.rsum(parts, found) > start
    for one, other in itertools.permutations(range(8), 2):
        if found[one]:
            moved = list(found)
            moved[one], moved[other] = moved[one] - 0.1, moved[other] + 0.1
            assert PartScores.rsum(parts, moved) <= PartScores.rsum(parts, found)


def test_equal_parts_are_weighed_as_evenly_as_can_be():
    scores, caption_image = toy(0, 1)
    assert max(best_weights(PartScores(scores * 5, caption_image), steps=10)) == pytest.approx(0.2)


def test_a_useless_part_gets_no_weight():
    generator = torch.Generator().manual_seed(0)
    bad = [normalize(torch.randn(20, 2, generator=generator), dim=-1) for _ in range(2)]
    # However small the good one's similarities are.
    scores = [EmbeddingScores(torch.eye(20), 0.05 * torch.eye(20)), EmbeddingScores(*bad)]
    assert best_weights(PartScores(scores, torch.arange(20)), steps=10) == (1.0, 0.0)


def test_a_criterion_is_chosen_by_name():
    scores, caption_image = toy(1, 2)
    parts = PartScores(scores, caption_image)
    assert choose_weights(scores, caption_image) == best_weights(parts)
    assert choose_weights(scores, caption_image, "contrast") == learn_weights(parts) != best_weights(parts)
