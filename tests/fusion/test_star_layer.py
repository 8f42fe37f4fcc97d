"""What every layer of the star graph must keep, whatever its formula."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from star_graphs import random_batch, randomised

from modalloy.errors import ConfigError, DataError
from modalloy.fusion.star_gcn import StarGCN
from modalloy.fusion.star_graph import StarGATv2
from modalloy.fusion.star_layer import StarLayer
from modalloy.fusion.star_transformer import StarTransformer

LAYERS: dict[str, Callable[[], StarLayer]] = {
    "gatv2": lambda: StarGATv2(8, 2),
    "transformer": lambda: StarTransformer(8, 2),
    "gcn": lambda: StarGCN(8, 16),
    "gatv2 with edges": lambda: StarGATv2(8, 2, edge_attributes=True),
    "transformer with edges": lambda: StarTransformer(8, 2, edge_attributes=True),
}
all_layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())


@all_layers
@given(
    lengths=st.lists(st.tuples(*[st.integers(1, 5)] * 3), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=10)
def test_padding_order_and_batch_change_nothing(
    make: Callable[[], StarLayer], lengths: list[tuple[int, int, int]], padding: int, seed: int
) -> None:
    layer = randomised(make(), 8).double()
    tokens, mask, targets = random_batch(lengths, 8, seed)
    tokens = tokens.double()
    edges = None
    if layer.lin_edge is not None:
        edges = torch.rand(len(mask), 3, mask.shape[1], generator=torch.Generator().manual_seed(seed)).double()
    updated = layer(tokens, mask, targets, edges=edges)

    for item in range(len(lengths)):
        one = slice(item, item + 1)
        alone = layer(tokens[one], mask[one], targets, edges=None if edges is None else edges[one])
        torch.testing.assert_close(alone, updated[one])

    filler = torch.full((len(lengths), padding, 8), 1e3, dtype=torch.double)
    hidden = torch.zeros(len(lengths), padding, dtype=torch.bool)
    padded_edges = None if edges is None else torch.nn.functional.pad(edges, (padding, 0), value=1e3)
    padded = layer(
        torch.cat([filler, tokens], 1), torch.cat([hidden, mask], 1), [t + padding for t in targets], edges=padded_edges
    )
    torch.testing.assert_close(padded, updated)

    order = torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(seed))
    moved = [int((order == target).nonzero()) for target in targets]
    shuffled = layer(tokens[:, order], mask[:, order], moved, edges=None if edges is None else edges[:, :, order])
    torch.testing.assert_close(shuffled, updated)


@all_layers
def test_an_encoder_that_an_item_lacks_sends_nothing(make: Callable[[], StarLayer]) -> None:
    layer = randomised(make(), 8)
    tokens, mask, targets = random_batch([(4, 3, 2), (2, 3, 2)], 8)
    edges = None if layer.lin_edge is None else torch.rand(2, 3, mask.shape[1])
    mask[1, targets[1] : targets[2]] = False
    present = torch.tensor([[True, True, True], [True, False, True]])
    updated = layer(tokens, mask, targets, edges=edges, present=present)
    assert updated.isfinite().all()
    without = mask[1].clone()
    without[targets[1]] = False
    rest = torch.cat([tokens[1:, : targets[1]], tokens[1:, targets[2] :]], 1)
    rest_mask = torch.cat([mask[1:, : targets[1]], mask[1:, targets[2] :]], 1)
    rest_edges = None if edges is None else torch.cat([edges[1:, :, : targets[1]], edges[1:, :, targets[2] :]], 2)
    expected = layer(
        rest, rest_mask, [0, targets[1]], edges=None if rest_edges is None else rest_edges[:, [0, 2]].contiguous()
    )
    torch.testing.assert_close(updated[1:, [0, 2]], expected)
    with pytest.raises(DataError, match="item 1: the CLS token of encoder 1"):
        layer(tokens, mask, targets, edges=edges, present=torch.ones_like(present))


@all_layers
def test_edges_and_the_layer_must_agree(make: Callable[[], StarLayer]) -> None:
    layer = make()
    tokens, mask, targets = random_batch([(4, 3)], 8)
    edges = torch.rand(1, 2, 7) if layer.lin_edge is None else None
    with pytest.raises(ConfigError, match=f"{type(layer).__name__} takes edges if, and only if"):
        layer(tokens, mask, targets, edges=edges)


@all_layers
@pytest.mark.parametrize("targets", [[], [7], [-1, 0]])
def test_a_target_outside_the_tokens_is_refused(make: Callable[[], StarLayer], targets: list[int]) -> None:
    tokens, mask, _ = random_batch([(4, 3)], 8)
    with pytest.raises(DataError, match="from 0 to 6"):
        make()(tokens, mask, targets)
