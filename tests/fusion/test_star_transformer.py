"""The dense graph transformer against PyG's TransformerConv on the same edges and weights."""

import pytest
import torch
from star_graphs import LENGTHS, assert_equals_pyg, pyg_star, pyg_twin, random_batch, randomised, relative_error

from modalloy.errors import ConfigError
from modalloy.fusion import star_graph
from modalloy.fusion.star_layer import StarLayer
from modalloy.fusion.star_transformer import StarTransformer


def random_layer(dim: int, **options: object) -> StarLayer:
    return randomised(StarTransformer(dim, **options), dim)  # type: ignore[arg-type]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("options", [{}, {"heads": 1}, {"head_dim": 5}], ids=str)
def test_equals_pyg_forward_and_backward(lengths: list[tuple[int, ...]], options: dict[str, object]) -> None:
    assert_equals_pyg(random_layer(16, **options), lengths, 16)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_equals_pyg_with_numbers_on_the_edges(lengths: list[tuple[int, ...]]) -> None:
    _, mask, targets = random_batch(lengths, 16)
    edges = torch.randn(len(mask), len(targets), mask.shape[1])
    assert_equals_pyg(random_layer(16, edge_attributes=True), lengths, 16, edges)


def test_equals_pyg_at_the_published_size() -> None:
    layer = random_layer(512)
    tokens, mask, targets = random_batch([(577, 36), (577, 11)], 512)
    torch.testing.assert_close(
        layer(tokens, mask, targets), pyg_star(pyg_twin(layer), tokens, mask, targets), rtol=1e-4, atol=1e-4
    )


def test_attention_equals_pyg() -> None:
    layer = random_layer(16)
    tokens, mask, targets = random_batch([(5, 3)], 16)
    edges = torch.cartesian_prod(torch.arange(8), torch.tensor(targets)).T
    _, (_, theirs) = pyg_twin(layer)(tokens[0], edges, return_attention_weights=True)
    updated, ours = layer(tokens, mask, targets, return_attention=True)
    torch.testing.assert_close(ours[0], theirs.view(8, 2, 4).permute(1, 2, 0))
    torch.testing.assert_close(updated, layer(tokens, mask, targets))


def test_dropout_equals_pyg_message_by_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same weights dropped, messages (their bias and their edge's number too) are scaled as in PyG."""
    layer = random_layer(8, heads=2, dropout=0.5, edge_attributes=True)
    twin = pyg_twin(layer)
    twin.dropout = 0.5
    tokens, mask, targets = random_batch([(5, 3)], 8)
    carried = torch.randn(1, 2, 8)
    dropped = torch.rand(1, 2, 2, 8) < 0.5

    def drop(weights: torch.Tensor, p: float, training: bool) -> torch.Tensor:
        # PyG's are "edges heads", the edges source by source.
        chosen = dropped if weights.dim() == 4 else dropped[0].permute(2, 0, 1).flatten(0, 1)
        return weights * ~chosen / (1 - p)

    monkeypatch.setattr(star_graph.F, "dropout", drop)
    torch.testing.assert_close(
        layer(tokens, mask, targets, edges=carried), pyg_star(twin, tokens, mask, targets, carried)
    )


def test_bfloat16_autocast_stays_near_float32() -> None:
    layer = random_layer(64, edge_attributes=True)
    tokens, mask, targets = random_batch([(50, 9), (50, 4)], 64)
    edges = torch.rand(2, 2, 59)
    exact = layer(tokens, mask, targets, edges=edges)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, attention = layer(tokens, mask, targets, return_attention=True, edges=edges)
    assert rounded.dtype == torch.bfloat16
    assert attention.dtype == torch.float32
    assert relative_error(rounded.float(), exact) < 0.03
    halved = layer.bfloat16()(tokens.bfloat16(), mask, targets, edges=edges)
    assert relative_error(halved.float(), exact) < 0.03


@pytest.mark.parametrize("options", [{"dim": 0}, {"dim": 4, "heads": 0}, {"dim": 4, "dropout": 1.0}], ids=str)
def test_impossible_sizes_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="of StarTransformer must be"):
        StarTransformer(**options)  # type: ignore[arg-type]
