import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.blocks import check_captions, even_slices


@given(st.integers(0, 200), st.integers(1, 50))
def test_slices_cover_everything_once_and_evenly(length, block):
    slices = even_slices(length, block)
    assert [row for part in slices for row in range(length)[part]] == list(range(length))
    sizes = {part.stop - part.start for part in slices}
    assert not sizes or (max(sizes) <= block and max(sizes) - min(sizes) <= 1)
    assert len(slices) == -(-length // block)


@pytest.mark.parametrize("block", [0, -3])
def test_block_below_one_is_refused(block):
    with pytest.raises(ConfigError, match="block must be at least 1"):
        even_slices(5, block)


def test_captions_become_int64():
    assert check_captions(torch.tensor([1, 0], dtype=torch.int32), 2, 2).dtype == torch.int64


@pytest.mark.parametrize(
    ("captions", "n_images", "n_captions", "message"),
    [
        ([0, 3, 1], 3, 3, "caption 1 belongs to image row 3, expected a row from 0 to 2"),
        ([0, 1, -1], 3, 3, "caption 2 belongs to image row -1"),
        ([0, 1], 3, 3, "3 captions, got 2 entries"),
        ([0], 0, 1, "at least one image"),
        ([], 2, 0, "at least one image"),
    ],
)
def test_captions_that_fit_nothing_are_refused(captions, n_images, n_captions, message):
    with pytest.raises(DataError, match=message):
        check_captions(torch.tensor(captions, dtype=torch.int64), n_images, n_captions)
