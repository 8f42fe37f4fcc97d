import pytest

from modalloy.errors import ConfigError
from modalloy.workflow.weighted_inputs import positions_of

NAMES = ["clip", "siglip", "blip", "blip"]


@pytest.mark.parametrize(
    ("chosen", "positions"),
    [(["siglip"], (1,)), ([3, "clip"], (0, 3)), ([2, 0, 1], (0, 1, 2)), ([0, 1, 2, 3], (0, 1, 2, 3))],
)
def test_names_and_positions_may_be_mixed(chosen, positions):
    assert positions_of(chosen, NAMES) == positions


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["albef"], "no input 'albef'; name some of clip, siglip, blip, blip, or positions from 0 to 3"),
        ([4], "no input 4;"),
        ([-1], "no input -1;"),
        (["clip", 0], "each input once, got 'clip' twice"),
        (["blip"], "2 inputs are called 'blip'; give positions"),
    ],
)
def test_what_is_no_input_is_refused(chosen, message):
    with pytest.raises(ConfigError, match=message):
        positions_of(chosen, NAMES)
