"""Attention maps against the loop's weights, and against the scores that they are the inside of."""

import pytest
import torch
from align.loops import loop_attention
from align.test_local_similarity import ATTENTIONS, KINDS, LENGTHS, degenerate, tokens
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity, leaky_relu

from modalloy.align import Tokens, attention_maps, local_similarity
from modalloy.errors import DataError


def pairs(regions, words, seed):
    torch.manual_seed(seed)
    count = min(len(regions), len(words))
    images, captions = tokens(regions[-count:]), tokens(words[-count:], longest=6)
    images.mask[-1, 1] = False
    return images, captions


def loop_map(image, caption, attention):
    """Weights "words regions" of one pair, of tokens without padding."""
    t2i = attention.direction == "t2i"
    context, query = (image, caption) if t2i else (caption, image)
    affinity = leaky_relu(context @ query.T, 0.1)
    logits = attention.smoothing * torch.stack([row / (row.norm() + 1e-8) for row in affinity])
    weights = torch.stack([loop_attention(logits[:, place], attention.focal) for place in range(len(query))])
    return weights if t2i else weights.T


@given(LENGTHS, LENGTHS, st.sampled_from(ATTENTIONS), st.integers(0, 1000))
def test_weights_equal_the_loop(regions, words, attention, seed):
    images, captions = pairs(regions, words, seed)
    maps = attention_maps(images, captions, attention)
    for place, found in enumerate(maps.weights):
        seen, said = images.mask[place], captions.mask[place]
        if seen.any() and said.any():
            expected = loop_map(images.values[place][seen], captions.values[place][said], attention)
            torch.testing.assert_close(found[said][:, seen], expected)
        assert not found[~said].any() and not found[:, ~seen].any()


@given(LENGTHS, LENGTHS, st.sampled_from(ATTENTIONS), st.integers(0, 1000))
def test_the_words_mean_is_the_score_and_the_weights_give_it(regions, words, attention, seed):
    images, captions = pairs(regions, words, seed)
    weights, own = attention_maps(images, captions, attention)
    scores = local_similarity(images, captions, attention).diagonal()
    torch.testing.assert_close(own.sum(1) / captions.mask.sum(1).clamp(min=1), scores)
    t2i = attention.direction == "t2i"
    context, query = (images, captions) if t2i else (captions, images)
    attended = (weights if t2i else weights.mT) @ context.values.masked_fill(~context.mask[..., None], 0)
    cosines = cosine_similarity(attended, query.values, dim=-1) * query.mask
    torch.testing.assert_close(cosines.sum(1) / query.mask.sum(1).clamp(min=1), scores)
    if t2i:
        torch.testing.assert_close(own, cosines)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
def test_weights_add_up_to_one_whatever_the_tokens(kind, attention):
    torch.manual_seed(0)
    images, captions = degenerate(kind)
    weights, own = attention_maps(images, captions, attention)
    assert (weights >= 0).all() and own.isfinite().all()
    t2i = attention.direction == "t2i"
    query, context = (captions, images) if t2i else (images, captions)
    expected = (query.mask & context.mask.any(1, keepdim=True)).float()
    torch.testing.assert_close(weights.sum(2 if t2i else 1), expected)
    scores = own.sum(1) / captions.mask.sum(1).clamp(min=1)
    assert scores.abs().max() <= 1 + 1e-3
    if kind != "cancelling tokens":  # whose scores are rounding errors
        torch.testing.assert_close(scores, local_similarity(images, captions, attention).diagonal())


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
def test_padding_may_hold_anything(attention):
    torch.manual_seed(0)
    images, captions = tokens([3, 1]), tokens([2, 5])
    expected = attention_maps(images, captions, attention)
    for batch in (images, captions):
        batch.values[~batch.mask] = torch.nan
    found = attention_maps(images, captions, attention)
    assert all(map(torch.equal, found, expected))


def test_pairs_that_do_not_fit_are_refused():
    images = tokens([2, 3])
    with pytest.raises(DataError, match="in the same place, got 2 and 1"):
        attention_maps(images, tokens([2]))
    with pytest.raises(DataError, match="of one width, got 5 and 4"):
        attention_maps(images, tokens([2, 2], dim=4))


def test_no_pairs_give_no_maps():
    none = Tokens(torch.zeros(0, 3, 5), torch.ones(0, 3, dtype=torch.bool))
    assert attention_maps(none, none).weights.shape == (0, 3, 3)
