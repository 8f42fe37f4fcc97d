"""Cross-layer scores against the sum of single ones, and the local branch against its layers written out."""

import pytest
import torch

from modalloy.align import (
    CrossAttention,
    LocalBranch,
    LocalConfig,
    Tokens,
    candidate_cross_layer_similarity,
    compared_levels,
    cross_layer_similarity,
    local_similarity,
)
from modalloy.align.cross_layer import CROSS, CROSS_LAYER, FOCAL, Levels, Term
from modalloy.errors import ConfigError, DataError


def tokens(items: int, length: int, width: int = 6) -> Tokens:
    lengths = torch.randint(1, length + 1, (items,))
    return Tokens(torch.randn(items, length, width).double(), torch.arange(length) < lengths[:, None])


def batch(widths: tuple[int, int, int, int] = (6, 6, 6, 6)) -> tuple[Levels, Levels]:
    torch.manual_seed(0)
    images: Levels = {"high": tokens(4, 4, widths[0]), "mid": tokens(4, 7, widths[1])}
    return images, {"high": tokens(5, 3, widths[2]), "mid": tokens(5, 3, widths[3])}


@pytest.mark.parametrize("focal", ["prob", "equal", None])
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_only_the_high_levels_attend_with_focus(direction, focal):
    images, captions = batch()
    plain, focused = CrossAttention(direction), CrossAttention(direction, focal)
    expected = (
        local_similarity(images["high"], captions["high"], focused)
        + local_similarity(images["high"], captions["mid"], plain)
        + local_similarity(images["mid"], captions["high"], plain)
    )
    torch.testing.assert_close(cross_layer_similarity(images, captions, focused), expected)


def test_stages_add_up_for_candidates():
    images, captions = batch()
    candidates = torch.tensor([[0, 3], [1, 2], [2, -1], [3, 0], [1, 0]])
    whole = cross_layer_similarity(images, captions).T.gather(1, candidates.clamp(min=0))
    expected = whole.masked_fill(candidates < 0, -torch.inf)
    stages = [
        candidate_cross_layer_similarity(images, captions, candidates, "text_to_image", terms=terms)
        for terms in (FOCAL, CROSS, CROSS_LAYER)
    ]
    torch.testing.assert_close(stages[0] + stages[1], expected)
    torch.testing.assert_close(stages[2], expected)


def test_terms_may_be_others_than_hacans():
    images, captions = batch()
    terms = [Term("mid", "mid"), Term("high", "high", focal=True)]
    expected = local_similarity(images["mid"], captions["mid"]) + local_similarity(
        images["high"], captions["high"], CrossAttention(focal="prob")
    )
    torch.testing.assert_close(cross_layer_similarity(images, captions, terms=terms), expected)


def test_a_level_that_no_term_reads_may_be_missing():
    images, captions = batch()
    del images["mid"]
    assert cross_layer_similarity(images, captions, terms=FOCAL).shape == (4, 5)
    with pytest.raises(DataError, match=r"the images have no tokens of the level 'mid', only of \['high'\]"):
        cross_layer_similarity(images, captions)
    with pytest.raises(ConfigError, match="at least one term"):
        cross_layer_similarity(images, captions, terms=[])


def test_the_branch_maps_each_level_with_the_map_of_that_name():
    images, captions = batch((4, 3, 5, 2))
    config = LocalConfig(4, 3, 5, 2, dim=6, attention=CrossAttention("i2t", "equal"))
    branch = LocalBranch(config).double()

    def mapped(name: str, given: Tokens) -> Tokens:
        state = branch.state_dict()
        return Tokens(given.values @ state[f"{name}.weight"].T + state[f"{name}.bias"], given.mask)

    expected = cross_layer_similarity(
        {level: mapped(f"image_{level}", given) for level, given in images.items()},
        {level: mapped(f"text_{level}", given) for level, given in captions.items()},
        config.attention,
    )
    scores = branch(images, captions, block=3)
    torch.testing.assert_close(scores, expected)
    scores.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in branch.parameters())


def test_terms_of_a_level_that_is_not_there_are_left_out():
    images, captions = batch()
    del captions["mid"]
    branch = LocalBranch(LocalConfig(6, 6, 6, None, dim=6)).double()
    assert branch.config.terms == (Term("high", "high", focal=True), Term("mid", "high"))
    expected = cross_layer_similarity(
        branch.project("image", images), branch.project("text", captions), terms=branch.config.terms
    )
    torch.testing.assert_close(branch(images, captions), expected)
    assert LocalConfig(6, None, 6, 6).terms == (Term("high", "high", focal=True), Term("high", "mid"))
    assert LocalConfig(6, None, 6, None).terms == FOCAL
    with pytest.raises(DataError, match="made without the texts' level 'mid'"):
        branch.project("text", images)


def test_images_are_compared_without_their_summary():
    values, mask = torch.randn(3, 5, 2), torch.arange(5) < torch.tensor([5, 1, 3])[:, None]
    for modality, first in (("image", 1), ("text", 0)):
        compared = compared_levels(modality, {"high": (values, mask), "mid": (values, mask)})
        for level in ("high", "mid"):
            assert torch.equal(compared[level].values, values[:, first:])
            assert torch.equal(compared[level].mask, mask[:, first:])


@pytest.mark.parametrize("name", ["image_high", "image_mid", "text_high", "text_mid", "dim"])
def test_impossible_widths_are_refused(name):
    widths = {"image_high": 1, "image_mid": 1, "text_high": 1, "text_mid": 1, "dim": 1}
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        LocalConfig(**(widths | {name: 0}))
