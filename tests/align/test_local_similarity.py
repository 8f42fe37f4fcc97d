"""Local similarity against loops over pairs and words."""

import math

import pytest
import torch
from align.loops import loop_similarity
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from modalloy.align import CrossAttention, Tokens, candidate_similarity, local_similarity
from modalloy.align.pair_blocks import extents
from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import rerank_ranks

ATTENTIONS = [CrossAttention(direction, focal) for direction in ("t2i", "i2t") for focal in (None, "equal", "prob")]


def tokens(lengths: list[int], dim: int = 5, longest: int | None = None, dtype: torch.dtype = torch.float64) -> Tokens:
    longest = max(lengths) if longest is None else longest
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return Tokens(torch.randn(len(lengths), longest, dim, dtype=dtype), mask)


def leaves(*batches: Tokens) -> list[Tokens]:
    return [Tokens(batch.values.detach().clone().requires_grad_(), batch.mask) for batch in batches]


LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=5).map(lambda lengths: [*lengths, 3])


@given(LENGTHS, LENGTHS, st.sampled_from(ATTENTIONS), st.sampled_from([None, 1, 2, 7]), st.integers(0, 1000))
def test_scores_equal_the_loop(regions, words, attention, block, seed):
    torch.manual_seed(seed)
    images, captions = tokens(regions), tokens(words, longest=6)
    # Gaps, as where words are taken out, are padding like any other.
    images.mask[-1, 1] = False
    found = local_similarity(images, captions, attention, block=block)
    torch.testing.assert_close(found, loop_similarity(images, captions, attention))


@pytest.mark.parametrize("smoothing", [0.5, 4.0, 20.0])
def test_smoothing_is_that_of_the_softmax(smoothing):
    torch.manual_seed(0)
    attention = CrossAttention(smoothing=smoothing)
    images, captions = tokens([3, 4]), tokens([2, 5])
    found = local_similarity(images, captions, attention)
    torch.testing.assert_close(found, loop_similarity(images, captions, attention))


def upstream(kind: str, images: int, captions: int) -> Tensor:
    dense = torch.randn(images, captions, dtype=torch.float64)
    return dense if kind == "dense" else dense * torch.eye(images, captions)


@pytest.mark.parametrize("kind", ["dense", "few pairs"])
@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
def test_gradients_equal_the_loop(kind, attention):
    torch.manual_seed(0)
    ours = leaves(tokens([3, 1, 4, 0, 2, 2, 4, 4, 1]), tokens([2, 5, 1, 3, 3, 0, 3, 3, 2], longest=6))
    theirs = leaves(*ours)
    grad = upstream(kind, 9, 9)
    local_similarity(*ours, attention, block=20).backward(grad)
    loop_similarity(*theirs, attention).backward(grad)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.values.grad, other.values.grad)


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
def test_padding_may_hold_anything(attention):
    torch.manual_seed(0)
    images, captions = tokens([3, 1, 4]), tokens([2, 5])
    expected = local_similarity(images, captions, attention)
    for batch in (images, captions):
        batch.values[~batch.mask] = torch.nan
    images, captions = leaves(images, captions)
    found = local_similarity(images, captions, attention)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert images.values.grad.isfinite().all() and not images.values.grad[~images.mask].any()


def degenerate(kind: str) -> tuple[Tokens, Tokens]:
    images, captions = tokens([4, 4], dtype=torch.float32), tokens([4, 4], dtype=torch.float32)
    if kind == "zeros":
        images.values[0], captions.values[1] = 0, 0
    elif kind == "one zero token":
        images.values[0, 1], captions.values[1, 2] = 0, 0
    elif kind == "equal tokens":
        images.values[:], captions.values[:] = images.values[:1, :1], captions.values[:1, :1]
    elif kind == "single tokens":
        images.mask[:, 1:], captions.mask[:, 1:] = False, False
    elif kind == "no tokens":
        images.mask[:], captions.mask[1] = False, False
    else:  # tokens so short that all weights are equal, and an attended vector that is a rounding error
        for values in (images.values, captions.values):
            values[:, 2:] = -(1 + 1e-4) * values[:, :2]
            values.mul_(1e-7)
    return images, captions


KINDS = ["zeros", "one zero token", "equal tokens", "single tokens", "no tokens", "cancelling tokens"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
def test_degenerate_tokens_score_within_bounds_and_have_finite_gradients(kind, attention):
    torch.manual_seed(0)
    images, captions = leaves(*degenerate(kind))
    scores = local_similarity(images, captions, attention)
    assert scores.abs().max() <= 1 + 1e-6
    scores.sum().backward()
    assert images.values.grad.isfinite().all() and captions.values.grad.isfinite().all()
    if kind in ("zeros", "no tokens"):
        assert not scores[0, 1]


def test_contexts_that_cancel_but_for_rounding_keep_the_cosine_within_bounds():
    torch.manual_seed(0)
    token, there = torch.randn(50, 1, 64), torch.ones(50, 2, dtype=torch.bool)
    images = Tokens(1e-7 * torch.cat([token, -(1 + 1e-5) * token], dim=1), there)
    assert local_similarity(images, Tokens(1e-7 * torch.randn(50, 2, 64), there)).abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("focal", ["equal", "prob"])
def test_where_focus_would_leave_nothing_all_weights_stay(focal):
    torch.manual_seed(0)
    images, captions = tokens([3] * 2), tokens([2] * 2)
    images.values[:] = images.values[:, :1]
    plain = local_similarity(images, captions)
    assert torch.equal(local_similarity(images, captions, CrossAttention(focal=focal)), plain)


@pytest.mark.parametrize("focal", ["equal", "prob"])
def test_focus_does_not_depend_on_the_padding_that_other_items_bring(focal):
    # Of the second word the weights differ by some 50 roundings: more than the error of a mean of two, less than that
    # of a mean of a hundred.
    regions = torch.tensor([[1.0, 1, 1, 0], [1, 1 + 2**-19, 0, 1]])
    image = Tokens(regions[None], torch.ones(1, 2, dtype=torch.bool))
    captions = Tokens(torch.eye(4)[None, :2], torch.ones(1, 2, dtype=torch.bool))
    alone = local_similarity(image, captions, CrossAttention(focal=focal))
    # Of either word the better region alone stays, whose cosine with it is 1 / sqrt(3).
    torch.testing.assert_close(alone, torch.tensor([[1 / math.sqrt(3)]]))
    mixed = tokens([2, 100], 4, dtype=torch.float32)
    mixed.values[0, :2] = regions
    torch.testing.assert_close(local_similarity(mixed, captions, CrossAttention(focal=focal))[:1], alone)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_close_to_float32(autocast):
    torch.manual_seed(0)
    images, captions = tokens([5, 7, 6], 64, dtype=torch.float32), tokens([4, 3], 64, dtype=torch.float32)
    expected_leaves, found_leaves = leaves(images, captions), leaves(images, captions)
    expected = local_similarity(*expected_leaves)
    given = found_leaves if autocast else [Tokens(each.values.bfloat16(), each.mask) for each in found_leaves]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = local_similarity(*given)
        found.sum().backward()  # within autocast, too
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)
    expected.sum().backward()
    for mine, other in zip(found_leaves, expected_leaves, strict=True):
        assert mine.values.grad.dtype == torch.float32
        assert (mine.values.grad - other.values.grad).norm() < 0.03 * other.values.grad.norm()


def test_float16_weights_do_not_overflow():
    torch.manual_seed(0)
    images, captions = tokens([5, 7], 16, dtype=torch.float32), tokens([4, 3], 16, dtype=torch.float32)
    attention = CrossAttention(smoothing=20.0)  # exp(20) is no number of float16
    expected = local_similarity(images, captions, attention)
    found = local_similarity(*(Tokens(each.values.half(), each.mask) for each in (images, captions)), attention)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


class Largest(TorchDispatchMode):
    """How many numbers the largest result held, and how many all matrix products had."""

    largest, products = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
            if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
                self.products += result.numel()
        return result


def test_no_more_than_a_block_of_affinities_is_held():
    images, captions = leaves(tokens([5] * 12, 3), tokens([4] * 12, 3))
    with Largest() as held:
        scores = local_similarity(images, captions, block=16)
    assert held.largest == 16 * 5 * 4 > images.values.numel()
    with Largest() as held:
        scores.backward(torch.ones_like(scores))
    assert held.largest == 16 * 5 * 4
    candidates = torch.arange(12).repeat(12, 1)
    with Largest() as held:
        candidate_similarity(images, captions, candidates, "text_to_image", block=3).sum().backward()
    assert held.largest <= max(candidates.numel() * 2, images.values.numel(), 12 * 5 * 5)


def test_the_backward_leaves_out_pairs_without_a_gradient():
    images, captions = leaves(tokens([5] * 16, 3), tokens([4] * 16, 3))
    products = []
    for grad in (torch.ones(16, 16), torch.eye(16)):
        scores = local_similarity(images, captions)
        with Largest() as counted:
            scores.backward(grad.double())
        products.append(counted.products)
    assert products[1] < products[0] / 4


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
@pytest.mark.parametrize("attention", ATTENTIONS[::2], ids=str)
def test_candidates_have_the_scores_and_gradients_of_all_pairs(direction, attention):
    torch.manual_seed(0)
    ours = leaves(tokens([3, 1, 4]), tokens([2, 5, 1, 3]))
    theirs = leaves(*ours)
    by_image = direction == "image_to_text"
    candidates = torch.tensor([[1, 0, -1], [3, 1, 2], [0, -1, -1]] if by_image else [[1, -1], [2, 0], [0, 1], [-1, -1]])
    found = candidate_similarity(*ours, candidates, direction, attention, block=2)
    whole = local_similarity(*theirs, attention)
    expected = (whole if by_image else whole.T).gather(1, candidates.clamp(min=0))
    expected = torch.where(candidates < 0, -math.inf, expected)
    torch.testing.assert_close(found, expected)
    for scores in (found, expected):
        (scores[candidates >= 0] * torch.arange(1, int((candidates >= 0).sum()) + 1)).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.values.grad, other.values.grad)


def test_candidates_scores_are_what_rerank_ranks_takes():
    torch.manual_seed(0)
    images, captions = tokens([3] * 4), tokens([2] * 4)
    images.values[:, :2] = captions.values  # each caption is part of its image
    candidates = torch.tensor([[1, 0], [3, 2], [2, -1], [3, 0]])
    scores = candidate_similarity(images, captions, candidates, "text_to_image", CrossAttention(focal="prob"))
    ranks = rerank_ranks(candidates, scores, torch.arange(4), 4, "text_to_image")
    assert ranks.tolist() == [1, math.inf, 1, 1]


def test_no_items_and_no_candidates_give_empty_scores():
    images, captions = tokens([2, 3]), Tokens(torch.randn(0, 4, 5).double(), torch.ones(0, 4, dtype=torch.bool))
    assert local_similarity(images, captions).shape == (2, 0)
    assert candidate_similarity(images, captions, torch.full((2, 1), -1), "image_to_text").tolist() == [[-math.inf]] * 2


def test_an_extent_counts_gaps():
    assert extents(torch.tensor([[True, False, True, False], [False] * 4])).tolist() == [3, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(direction="both"), "direction must be 't2i' or 'i2t'"),
        (dict(focal="some"), "focal must be 'prob', 'equal' or None"),
        (dict(smoothing=0.0), "smoothing must be above 0"),
        (dict(smoothing=21.0), "at most 20, got 21.0"),
        (dict(smoothing=math.nan), "smoothing must be above 0"),
    ],
)
def test_impossible_attention_is_refused(arguments, message):
    attention = CrossAttention()
    for name, value in arguments.items():
        object.__setattr__(attention, name, value)  # past the type checks that only the tests have
    with pytest.raises(ConfigError, match=message):
        attention.__post_init__()


def test_tokens_that_do_not_fit_are_refused():
    images, captions = tokens([2, 3]), tokens([2, 2], dim=4)
    with pytest.raises(DataError, match="of one width, got 5 and 4"):
        local_similarity(images, captions)
    with pytest.raises(ConfigError, match="block must be at least 1 pair, got 0"):
        local_similarity(images, images, block=0)
    with pytest.raises(Exception, match="tokens"):
        Tokens(torch.zeros(2, 3, 4), torch.ones(2, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([[0], [2]], "rows from 0 to 1, or -1 for an empty place, got 0 to 2"),
        ([[0], [-2]], "got -2 to 0"),
        ([[0]], "each of 2 queries must have a row of candidates, got 1 rows"),
    ],
)
def test_impossible_candidates_are_refused(candidates, message):
    batch = tokens([2, 3])
    with pytest.raises(DataError, match=message):
        candidate_similarity(batch, batch, torch.tensor(candidates), "image_to_text")
