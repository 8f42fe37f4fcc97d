import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalloy.features import pad


@given(st.lists(st.integers(0, 5), max_size=6), st.integers(1, 3))
def test_padded_tokens_unpack_to_what_was_packed(lengths: list[int], width: int) -> None:
    packed = torch.randn(sum(lengths), width)
    padded, mask = pad(packed, torch.tensor(lengths, dtype=torch.long))
    assert padded.shape == (len(lengths), max(lengths, default=0), width)
    assert mask.sum(1).tolist() == lengths
    assert torch.equal(padded[mask], packed)
    assert not padded[~mask].any()


def test_keeps_the_stored_type() -> None:
    padded, mask = pad(torch.ones(2, 3, dtype=torch.float16), torch.tensor([2]))
    assert padded.dtype == torch.float16
    assert mask.dtype == torch.bool


def test_refuses_lengths_that_do_not_add_up() -> None:
    with pytest.raises(RuntimeError, match="split"):
        pad(torch.ones(3, 2), torch.tensor([1, 1]))
