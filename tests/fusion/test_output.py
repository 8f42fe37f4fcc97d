import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from modalloy.errors import ConfigError
from modalloy.fusion.output import FusedOutput


def unit(rows: int, dim: int) -> torch.Tensor:
    return normalize(torch.randn(rows, dim), dim=-1)


@given(
    dims=st.lists(st.integers(2, 6), min_size=1, max_size=4),
    wider=st.integers(0, 4),
    learned=st.integers(0, 5),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=30)
def test_it_starts_as_the_mean_of_cosines(dims, wider, learned, seed):
    torch.manual_seed(seed)
    output = FusedOutput(dims, learned, sum(dims) + wider, dropout=0.5, start="identity").eval()
    image, text = [unit(3, dim) for dim in dims], [unit(4, dim) for dim in dims]
    beside = (torch.randn(3, learned), torch.randn(4, learned)) if learned else (None, None)
    product = output(image, beside[0]) @ output(text, beside[1]).T
    mean = torch.stack([i @ t.T for i, t in zip(image, text, strict=True)]).mean(0)
    torch.testing.assert_close(product, mean, rtol=0, atol=3e-2 if learned else 1e-6)


def test_what_is_learned_enters_through_small_weights_that_have_gradients():
    torch.manual_seed(0)
    output = FusedOutput([3, 2], 4, 5, dropout=0.0, start="identity")
    learned = torch.randn(6, 4, requires_grad=True)
    vectors = output([unit(6, 3), unit(6, 2)], learned)
    (vectors @ torch.randn(5)).sum().backward()
    assert learned.grad is not None and learned.grad.abs().max() > 0
    assert output.linear.weight.grad is not None and output.linear.weight.grad[:, 5:].abs().max() > 0


@pytest.mark.parametrize("start", ["identity", "random"])
def test_its_vectors_are_of_unit_norm(start):
    output = FusedOutput([3, 2], 4, 6, dropout=0.5, start=start)
    for module in (output.train(), output.eval()):
        vectors = module([unit(6, 3), unit(6, 2)], torch.randn(6, 4))
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(6))


def test_a_random_start_may_be_narrower_and_is_no_identity():
    torch.manual_seed(0)
    output = FusedOutput([3, 2], 0, 2, dropout=0.0, start="random")
    assert output([unit(6, 3), unit(6, 2)]).shape == (6, 2)
    assert not torch.equal(output.linear.weight[:, :2], torch.eye(2))


def test_an_identity_needs_the_width_of_all_inputs():
    with pytest.raises(ConfigError, match=r"at least as wide .*\(5\), got 4"):
        FusedOutput([3, 2], 0, 4, dropout=0.0, start="identity")
