import math
from dataclasses import replace

import pytest
import torch

from modalloy.fusion import EncoderFeatures
from modalloy.fusion.input_dropout import drop_encoders, drop_tokens
from modalloy.fusion.inputs import presence


def numbered(lengths: list[int], padded: int) -> EncoderFeatures:
    """Each token is its item and its position; padding is -1."""
    mask = torch.arange(padded) < torch.tensor(lengths)[:, None]
    tokens = torch.stack(torch.meshgrid(torch.arange(len(lengths)), torch.arange(padded), indexing="ij"), dim=-1)
    return EncoderFeatures(torch.randn(len(lengths), 2), tokens.float().masked_fill(~mask[:, :, None], -1), mask)


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.75, 0.99])
def test_a_subset_of_each_items_own_real_tokens_and_its_summary_are_kept(probability):
    torch.manual_seed(0)
    lengths = [9, 1, 2, 5, 9, 3]
    features = numbered(lengths, 11)
    kept = drop_tokens(features, probability)
    assert kept.tokens.shape[1] == 11 - math.floor(10 * probability)
    assert torch.equal(kept.embedding, features.embedding)
    for item, length in enumerate(lengths):
        tokens = kept.tokens[item][kept.mask[item]]
        assert len(tokens) == length - math.floor((length - 1) * probability)
        assert (tokens[:, 0] == item).all()
        assert len(set(tokens[:, 1].tolist())) == len(tokens)
        assert kept.mask[item, 0] and kept.tokens[item, 0, 1] == 0


def test_all_tokens_but_the_summary_are_kept_equally_often():
    torch.manual_seed(0)
    features = numbered([7] * 3000, 7)
    kept = drop_tokens(features, 0.5)
    counts = kept.tokens[:, :, 1].flatten().long().bincount(minlength=7) / 3000
    assert counts[0] == 1
    assert (counts[1:] - 0.5).abs().max() < 0.05


@pytest.mark.parametrize(("padded", "probability"), [(6, 0.0), (2, 0.5), (1, 0.9), (0, 0.5)])
def test_where_nothing_is_to_drop_features_stay_and_no_random_number_is_drawn(padded, probability):
    features = numbered([padded] * 2, padded)
    state = torch.random.get_rng_state()
    assert drop_tokens(features, probability) is features
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_missing_encoder_stays_missing():
    features = replace(numbered([5, 4], 5), present=torch.tensor([True, False]))
    features = features.known()
    kept = drop_tokens(features, 0.5)
    assert kept.mask.sum(1).tolist() == [3, 0]
    assert torch.equal(kept.present, features.present)


@pytest.mark.parametrize("encoders", [2, 5])
def test_an_item_loses_one_encoder_with_the_given_chance_evenly(encoders):
    torch.manual_seed(0)
    inputs = [numbered([1] * 4000, 1) for _ in range(encoders)]
    present = presence(drop_encoders(inputs, 0.3))
    lost = (~present).sum(1)
    assert lost.max() == 1
    assert lost.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert ((~present).float().mean(0) - 0.3 / encoders).abs().max() < 0.03


def test_what_is_missing_is_not_lost_and_the_last_encoder_neither():
    torch.manual_seed(0)
    inputs = [numbered([1] * 500, 1) for _ in range(3)]
    first = torch.arange(500) < 250
    inputs[0] = replace(inputs[0], present=first)
    inputs[1] = replace(inputs[1], present=first)
    present = presence(drop_encoders(inputs, 0.999))
    assert present[250:].tolist() == [[False, False, True]] * 250
    assert 240 < int((present[:250].sum(1) == 2).sum()) <= 250
    assert inputs[0].present is first and first.sum() == 250
