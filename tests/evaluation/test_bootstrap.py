import numpy as np
import pytest
import torch
from evaluation.naive import random_ranks

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import Ranks, bootstrap_difference, bootstrap_interval, metrics
from modalloy.evaluation.bootstrap import resample

CAPTION_IMAGE = torch.tensor([0, 0, 3, 1, 1, 1, 4, 3, 5, 0, 6, 6])
N_IMAGES = 8


def naive_rsum(seeds: list[Ranks], images: list[int]) -> float:
    """RSum of the queries that the drawn images bring, one by one, averaged over seeds."""
    total = []
    for ranks in seeds:
        hits = {"image": [], "caption": []}
        for image in images:
            hits["image"].append(float(ranks.image_to_text[image]))
            for caption in (image == CAPTION_IMAGE).nonzero()[:, 0].tolist():
                hits["caption"].append(float(ranks.text_to_image[caption]))
        total.append(sum(100 * np.mean([rank <= k for rank in side]) for side in hits.values() for k in (1, 5, 10)))
    return float(np.mean(total))


def naive_draws(samples: int, seed: int) -> list[list[int]]:
    """The images of each resample, from the same generator."""
    with_captions = CAPTION_IMAGE.unique().numpy()
    drawn = np.random.default_rng(seed).integers(len(with_captions), size=(samples, len(with_captions)))
    return with_captions[drawn].tolist()


@pytest.fixture
def systems() -> list[list[Ranks]]:
    return [[random_ranks(N_IMAGES, CAPTION_IMAGE, seed) for seed in seeds] for seeds in ((1, 2, 3), (4, 5))]


def test_difference_is_that_of_a_plain_loop_over_the_same_draws(systems):
    a, b = systems
    draws = naive_draws(300, seed=7)
    differences = [naive_rsum(a, images) - naive_rsum(b, images) for images in draws]
    result = bootstrap_difference(a, b, CAPTION_IMAGE, samples=300, seed=7, level=0.9)
    everything = CAPTION_IMAGE.unique().tolist()
    assert result.value == pytest.approx(naive_rsum(a, everything) - naive_rsum(b, everything))
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(differences, [0.05, 0.95])))
    assert result.low < result.high


def test_chunks_do_not_change_the_draws(systems, monkeypatch):
    whole = resample(systems, CAPTION_IMAGE, samples=50)[1]
    monkeypatch.setattr("modalloy.evaluation.bootstrap._DRAWN_AT_ONCE", 3 * N_IMAGES)
    np.testing.assert_allclose(resample(systems, CAPTION_IMAGE, samples=50)[1], whole)


def test_value_is_the_metric_itself():
    ranks = random_ranks(N_IMAGES, CAPTION_IMAGE, 0)
    result = metrics(ranks)
    assert bootstrap_interval(ranks, CAPTION_IMAGE).value == pytest.approx(result.rsum)
    for measure, value in (
        ("image_to_text R@5", result.image_to_text.recall_5),
        ("text_to_image R@10", result.text_to_image.recall_10),
    ):
        interval = bootstrap_interval(ranks, CAPTION_IMAGE, measure=measure)
        assert interval.value == pytest.approx(value)
        assert interval.low <= value <= interval.high


def test_a_system_never_differs_from_itself(systems):
    result = bootstrap_difference(systems[0], systems[0], CAPTION_IMAGE, samples=20)
    assert (result.value, result.low, result.high) == (0, 0, 0)
    assert not result.excludes_zero


def test_clusters_widen_the_interval():
    """Twenty captions an image that hit or miss together hold no more than one caption would."""
    n_images = 200
    hit = torch.rand(n_images, generator=torch.Generator().manual_seed(0)) < 0.5
    rank = torch.where(hit, 1.0, 20.0).double()
    widths = []
    for captions in (1, 20):
        caption_image = torch.arange(n_images).repeat_interleave(captions)
        ranks = Ranks(rank, rank[caption_image])
        interval = bootstrap_interval(ranks, caption_image, measure="text_to_image R@1")
        widths.append(interval.high - interval.low)
    assert widths[0] == pytest.approx(widths[1])
    # 1.96 standard errors of a share on each side.
    share = float(hit.double().mean())
    assert widths[0] == pytest.approx(2 * 196 * (share * (1 - share) / n_images) ** 0.5, rel=0.1)


def test_interval_covers_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    caption_image = torch.arange(100)
    covered = 0
    for _ in range(200):
        rank = torch.where(torch.rand(100, generator=generator) < 0.3, 1.0, 9.0).double()
        interval = bootstrap_interval(Ranks(rank, rank), caption_image, "image_to_text R@1", 300)
        covered += interval.low <= 30 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_bad_arguments_are_refused(systems):
    a, b = systems
    for measure in ("R@1", "text_to_image R@0", "image_to_text", "text_to_image R@1 "):
        with pytest.raises(ConfigError, match="measure must be"):
            bootstrap_interval(a, CAPTION_IMAGE, measure=measure)
    with pytest.raises(ConfigError, match="samples must be at least 1"):
        bootstrap_interval(a, CAPTION_IMAGE, samples=0)
    for level in (0.0, 1.0, 95.0):
        with pytest.raises(ConfigError, match="level must lie between 0 and 1"):
            bootstrap_interval(a, CAPTION_IMAGE, level=level)
    with pytest.raises(DataError, match="at least one run"):
        bootstrap_difference(a, [], CAPTION_IMAGE)
    other = random_ranks(N_IMAGES, CAPTION_IMAGE[:-1], 0)
    with pytest.raises(DataError, match=r"\[\(8, 11\), \(8, 12\)\]"):
        bootstrap_difference(a, other, CAPTION_IMAGE)
    with pytest.raises(DataError, match="12 captions, got 11"):
        bootstrap_difference(a, b, CAPTION_IMAGE[:-1])
    with pytest.raises(DataError, match="another caption_image"):
        bootstrap_difference(a, b, CAPTION_IMAGE.clamp(max=5))
