from dataclasses import replace

import pytest
import torch

from modalloy.errors import ConfigError
from modalloy.fusion.inputs import InputShape, check_inputs, unit_summaries

SHAPES = [InputShape(3, 5, 6), InputShape(4, 7, 8)]


def test_the_token_width_is_the_modalitys():
    assert SHAPES[0].width("image") == 5
    assert SHAPES[0].width("text") == 6


@pytest.mark.parametrize("modality", ["image", "text"])
def test_fitting_inputs_are_accepted(make_features, modality):
    check_inputs([make_features(2, s.dim, s.width(modality)) for s in SHAPES], SHAPES, modality)


@pytest.mark.parametrize(
    ("widths", "modality", "message"),
    [
        ([(3, 5)], "image", r"the features of 2 encoders, got 1"),
        ([(3, 5), (4, 7), (4, 7)], "image", r"the features of 2 encoders, got 3"),
        ([(4, 7), (3, 5)], "image", r"encoder 0's image features .*\(4, 7\).*fitted on \(3, 5\)"),
        ([(3, 6), (5, 8)], "text", r"encoder 1's text features .*\(5, 8\).*fitted on \(4, 8\)"),
        ([(3, 5), (4, 7)], "text", r"encoder 0's text features .*\(3, 5\).*fitted on \(3, 6\)"),
    ],
)
def test_other_inputs_are_refused(make_features, widths, modality, message):
    with pytest.raises(ConfigError, match=message):
        check_inputs([make_features(2, *each) for each in widths], SHAPES, modality)


def test_moving_features_keeps_them(make_features):
    features = make_features(2, 3, 5)
    moved = features.to(torch.device("cpu"), non_blocking=True)
    for name in ("embedding", "tokens", "mask"):
        assert torch.equal(getattr(moved, name), getattr(features, name))
    assert features.to(torch.device("meta")).tokens.device.type == "meta"


def test_chosen_items_keep_which_encoder_they_lack(make_features):
    features = replace(make_features(4, 3, 5), present=torch.tensor([True, False, True, False]))
    chosen = features.items(slice(1, 3))
    assert chosen.present is not None and chosen.present.tolist() == [False, True]
    assert torch.equal(chosen.tokens, features.tokens[1:3])


def test_summaries_are_of_unit_norm_and_zero_where_the_encoder_is_missing(make_features):
    features = replace(make_features(2, 3, 5), present=torch.tensor([True, False]))
    (summaries,) = unit_summaries([features])
    torch.testing.assert_close(summaries[0], features.tokens[0, 0] / features.tokens[0, 0].norm())
    assert summaries[1].eq(0).all()
