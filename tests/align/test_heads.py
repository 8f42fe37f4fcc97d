import math

import pytest
import torch
from torch import nn

from modalloy.align import GlobalHead, HeadConfig
from modalloy.errors import ConfigError


def unit(rows: int, width: int) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(rows, width), dim=-1)


def test_a_head_is_the_chain_of_layers_written_out():
    torch.manual_seed(0)
    head = GlobalHead(HeadConfig(5, (7, 6, 4))).eval()
    embedding = unit(3, 5)
    expected = embedding * math.sqrt(5)
    for layer in (module for module in head.layers if isinstance(module, nn.Linear)):
        expected = expected @ layer.weight.T + layer.bias
        expected = torch.where(expected > 0, expected, 0.01 * expected)
    expected = expected / (expected.norm(dim=-1, keepdim=True) + 1e-8)
    torch.testing.assert_close(head(embedding), expected)


def test_without_the_last_activation_the_output_is_linear_in_the_last_layer():
    torch.manual_seed(0)
    head = GlobalHead(HeadConfig(5, (4,), dropout=0.0, last_activation=False))
    (layer,) = (module for module in head.layers if isinstance(module, nn.Linear))
    embedding = unit(3, 5)
    expected = layer(embedding * math.sqrt(5))
    torch.testing.assert_close(head(embedding), nn.functional.normalize(expected, dim=-1))


def test_the_center_is_taken_off_the_embedding():
    torch.manual_seed(0)
    head = GlobalHead(HeadConfig(5, (4,))).eval()
    embedding, center = unit(3, 5), torch.randn(5)
    expected = head(embedding - center)
    head.center.copy_(center)
    torch.testing.assert_close(head(embedding), expected)


def test_under_autocast_the_output_is_in_float32_and_of_unit_norm():
    torch.manual_seed(0)
    head, embedding = GlobalHead(HeadConfig(64, (32,))).eval(), unit(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(embedding)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(found, head(embedding), atol=0.01, rtol=0)


def test_dropout_acts_after_the_first_layer_and_only_in_training():
    torch.manual_seed(0)
    head = GlobalHead(HeadConfig(5, (50, 4), dropout=0.5))
    assert [type(module).__name__ for module in head.layers] == [
        "Linear", "LeakyReLU", "Dropout", "Linear", "LeakyReLU",
    ]  # fmt: skip
    embedding = unit(3, 5)
    assert not torch.equal(head(embedding), head(embedding))
    head.eval()
    assert torch.equal(head(embedding), head(embedding))


def test_outputs_are_unit_norm_and_a_zero_output_stays_finite():
    head = GlobalHead(HeadConfig(3, (4,)))
    assert head(unit(6, 3)).norm(dim=-1).allclose(torch.ones(6))
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    output = head(unit(2, 3))
    assert torch.equal(output, torch.zeros(2, 4))
    output.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(input_width=3, widths=()), "at least one layer"),
        (dict(input_width=0, widths=(3,)), "widths of at least 1"),
        (dict(input_width=3, widths=(3, 0)), "widths of at least 1"),
        (dict(input_width=3, widths=(3,), dropout=1.0), "dropout"),
        (dict(input_width=3, widths=(3,), dropout=-0.1), "dropout"),
    ],
)
def test_impossible_shapes_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        HeadConfig(**arguments)


def test_a_summary_is_read_as_it_is():
    torch.manual_seed(0)
    head = GlobalHead(HeadConfig(5, (3,), input="summary", last_activation=False)).eval()
    token = 7 * torch.randn(2, 5)
    expected = nn.functional.normalize(nn.functional.linear(token, head.layers[0].weight, head.layers[0].bias), dim=-1)
    torch.testing.assert_close(head(token), expected)


def test_a_pooler_goes_first():
    torch.manual_seed(0)
    head = GlobalHead(HeadConfig(5, (3,), input="summary", last_activation=False, pooler=True)).eval()
    token = torch.randn(2, 5)
    pooled = torch.tanh(nn.functional.linear(token, head.pooler[0].weight, head.pooler[0].bias))
    expected = nn.functional.normalize(nn.functional.linear(pooled, head.layers[0].weight, head.layers[0].bias), dim=-1)
    torch.testing.assert_close(head(token), expected)


def test_heads_read_embeddings_or_summaries():
    config = HeadConfig(5, (3,))
    object.__setattr__(config, "input", "tokens")  # past the type checks that only the tests have
    with pytest.raises(ConfigError, match="input must be 'embedding' or 'summary', got 'tokens'"):
        config.__post_init__()
