"""The dense graph convolution against PyG's GCNConv on the same edges and weights."""

import pytest
import torch
from star_graphs import LENGTHS, assert_equals_pyg, random_batch, randomised, relative_error

from modalloy.errors import ConfigError
from modalloy.fusion.star_gcn import StarGCN


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("width", [16, 40])
def test_equals_pyg_forward_and_backward(lengths: list[tuple[int, ...]], width: int) -> None:
    assert_equals_pyg(randomised(StarGCN(16, width), 16), lengths, 16)


def test_its_coefficients_are_those_of_its_sum() -> None:
    layer = randomised(StarGCN(8, 6), 8)
    tokens, mask, targets = random_batch([(5, 3), (2, 1)], 8)
    updated, coefficients = layer(tokens, mask, targets, return_attention=True)
    assert coefficients.shape == (2, 2, 1, 8)
    summed = (coefficients[:, :, 0] @ tokens) @ layer.lin.weight.T + layer.bias
    torch.testing.assert_close(updated, summed)
    expected = torch.tensor([1 / 3, 3**-0.5, 0, 0, 0, 1 / 3, 0, 0])
    torch.testing.assert_close(coefficients[1, 0, 0], expected)


def test_bfloat16_autocast_stays_near_float32() -> None:
    layer = randomised(StarGCN(64, 64), 64)
    tokens, mask, targets = random_batch([(50, 9), (50, 4)], 64)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(tokens, mask, targets)
    assert rounded.dtype == torch.bfloat16
    assert relative_error(rounded.float(), layer(tokens, mask, targets)) < 0.03


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="of StarGCN must be at least 1, got 0"):
        StarGCN(*sizes)
