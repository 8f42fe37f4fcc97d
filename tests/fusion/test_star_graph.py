"""The dense star-graph layer against PyG's GATv2Conv on the same edges and weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from star_graphs import LENGTHS, GATv2Conv, assert_equals_pyg, pyg_star, pyg_twin, random_batch, relative_error
from torch import Tensor

from modalloy.errors import ConfigError, DataError
from modalloy.fusion import star_graph
from modalloy.fusion.star_graph import StarGATv2


def random_layer(dim: int, **options: object) -> StarGATv2:
    torch.manual_seed(0)
    layer = StarGATv2(dim, **options)  # type: ignore[arg-type]
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=dim**-0.5)
    return layer


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize(
    "options",
    [{}, {"heads": 1}, {"head_dim": 5}, {"bias": False}, {"share_weights": True}, {"negative_slope": 0.0}],
    ids=str,
)
def test_equals_pyg_forward_and_backward(lengths: list[tuple[int, ...]], options: dict[str, object]) -> None:
    assert_equals_pyg(random_layer(16, **options), lengths, 16)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_equals_pyg_with_numbers_on_the_edges(lengths: list[tuple[int, ...]]) -> None:
    _, mask, targets = random_batch(lengths, 16)
    edges = torch.randn(len(mask), len(targets), mask.shape[1])
    assert_equals_pyg(random_layer(16, edge_attributes=True), lengths, 16, edges)


def test_equals_pyg_at_the_published_size() -> None:
    layer = random_layer(512)
    twin = pyg_twin(layer)
    tokens, mask, targets = random_batch([(577, 36), (577, 11)], 512)
    ours_input, theirs_input = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    ours, theirs = layer(ours_input, mask, targets), pyg_star(twin, theirs_input, mask, targets)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    upstream = torch.randn(ours.shape)
    ours.backward(upstream)
    theirs.backward(upstream)
    assert ours_input.grad is not None and theirs_input.grad is not None
    assert relative_error(ours_input.grad, theirs_input.grad) < 1e-4
    gradients = dict(twin.named_parameters())
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert relative_error(parameter.grad, gradients[name].grad) < 1e-4, name


def test_attention_equals_pyg_and_sums_to_one() -> None:
    layer = random_layer(16)
    tokens, mask, targets = random_batch([(5, 3)], 16)
    edges = torch.cartesian_prod(torch.arange(8), torch.tensor(targets)).T
    _, (_, theirs) = pyg_twin(layer)(tokens[0], edges, return_attention_weights=True)
    updated, ours = layer(tokens, mask, targets, return_attention=True)
    torch.testing.assert_close(ours[0], theirs.view(8, 2, 4).permute(1, 2, 0))
    torch.testing.assert_close(ours.sum(-1), torch.ones(1, 2, 4))
    torch.testing.assert_close(updated, layer(tokens, mask, targets))


def test_gradcheck_in_double_precision() -> None:
    torch.manual_seed(0)
    layer = random_layer(3, heads=2, head_dim=2, edge_attributes=True).double()
    tokens, mask, targets = random_batch([(3, 2), (1, 2), (2, 1)], 3)
    edges = torch.randn(3, 2, 5, dtype=torch.double, requires_grad=True)

    def updated(tokens: Tensor, edges: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(layer, named, (tokens, mask, targets), {"edges": edges})

    inputs = [tokens.double().requires_grad_(), edges, *layer.parameters()]
    assert torch.autograd.gradcheck(updated, inputs)


def test_backward_twice_through_a_retained_graph() -> None:
    layer = random_layer(8)
    tokens, mask, targets = random_batch([(4, 3)], 8)
    loss = layer(tokens, mask, targets).square().sum()
    (once,) = torch.autograd.grad(loss, [layer.att], retain_graph=True)
    (again,) = torch.autograd.grad(loss, [layer.att])
    torch.testing.assert_close(once, again, rtol=0, atol=0)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6),
    padding=st.integers(0, 4),
    block=st.integers(1, 200),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_padding_order_batching_and_blocks_change_nothing(
    lengths: list[tuple[int, int]], padding: int, block: int, seed: int
) -> None:
    layer = random_layer(8, heads=2).double()
    tokens, mask, targets = random_batch(lengths, 8, seed)
    tokens = tokens.double()
    updated = layer(tokens, mask, targets)

    alone = torch.cat([layer(tokens[i : i + 1], mask[i : i + 1], targets) for i in range(len(lengths))])
    torch.testing.assert_close(alone, updated)

    filler = torch.full((len(lengths), padding, 8), 1e3, dtype=torch.double)
    hidden = torch.zeros(len(lengths), padding, dtype=torch.bool)
    padded_tokens = torch.cat([filler, tokens, filler], dim=1)
    padded_mask = torch.cat([hidden, mask, hidden], dim=1)
    shifted = [target + padding for target in targets]
    torch.testing.assert_close(layer(padded_tokens, padded_mask, shifted), updated)

    order = torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(seed))
    moved = [int((order == target).nonzero()) for target in targets]
    torch.testing.assert_close(layer(tokens[:, order], mask[:, order], moved), updated)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(star_graph, "_BLOCK_ELEMENTS", block)
        torch.testing.assert_close(layer(tokens, mask, targets), updated)


def test_blocks_do_not_change_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(8, heads=2, edge_attributes=True)
    tokens, mask, targets = random_batch([(4, 3), (2, 5), (4, 4)], 8)
    edges = torch.randn(3, 2, tokens.shape[1], requires_grad=True)
    inputs = [tokens.requires_grad_(), edges, *layer.parameters()]
    whole = torch.autograd.grad(layer(tokens, mask, targets, edges=edges).square().sum(), inputs)
    monkeypatch.setattr(star_graph, "_BLOCK_ELEMENTS", 1)
    blocked = torch.autograd.grad(layer(tokens, mask, targets, edges=edges).square().sum(), inputs)
    for ours, theirs in zip(blocked, whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_bfloat16_autocast_stays_near_float32() -> None:
    layer = random_layer(64)
    tokens, mask, targets = random_batch([(50, 9), (50, 4)], 64)
    tokens.requires_grad_()
    exact, attention = layer(tokens, mask, targets, return_attention=True)
    upstream = torch.randn_like(exact)
    inputs = [tokens, *layer.parameters()]
    exact_gradients = torch.autograd.grad(exact, inputs, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, rounded_attention = layer(tokens, mask, targets, return_attention=True)
    assert rounded.dtype == torch.bfloat16
    assert rounded_attention.dtype == torch.float32
    torch.testing.assert_close(rounded_attention.sum(-1), torch.ones(2, 2, 4))
    torch.testing.assert_close(rounded_attention, attention, rtol=0.05, atol=1e-4)
    assert relative_error(rounded.float(), exact) < 0.01
    gradients = torch.autograd.grad(rounded, inputs, upstream.bfloat16())
    for ours, theirs in zip(gradients, exact_gradients, strict=True):
        assert ours.dtype == theirs.dtype
        assert relative_error(ours, theirs) < 0.03


def test_half_precision_module_matches_its_float32_twin() -> None:
    layer = random_layer(32)
    tokens, mask, targets = random_batch([(6, 4), (5, 2)], 32)
    exact = layer(tokens, mask, targets)
    rounded = layer.bfloat16()(tokens.bfloat16(), mask, targets)
    assert rounded.dtype == torch.bfloat16
    assert relative_error(rounded.float(), exact) < 0.02


def test_dropout_is_identity_in_evaluation_and_unbiased_in_training() -> None:
    layer = random_layer(8, heads=2, dropout=0.5)
    tokens, mask, targets = random_batch([(6, 4)], 8)
    plain = random_layer(8, heads=2)
    expected = plain(tokens, mask, targets)
    torch.testing.assert_close(layer.eval()(tokens, mask, targets), expected, rtol=0, atol=0)
    layer.train()
    repeated = tokens.expand(20_000, -1, -1)
    samples = layer(repeated, mask.expand(20_000, -1), targets)
    deviation = (samples.mean(0) - expected[0]) / (samples.std(0) / 20_000**0.5)
    assert deviation.abs().max() < 5
    assert samples.std(0).min() > 0.01


def test_dropout_equals_pyg_message_by_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same weights dropped, messages (their bias too) are scaled as in PyG."""
    layer = random_layer(8, heads=2, dropout=0.5)
    tokens, mask, targets = random_batch([(5, 3)], 8)
    dropped = torch.rand(1, 2, 2, 8) < 0.5
    monkeypatch.setattr(
        star_graph.F,
        "dropout",
        lambda x, p, training: x * (~dropped if x.shape == dropped.shape else 1) / (1 - p),
    )
    updated, attention = layer(tokens, mask, targets, return_attention=True)
    messages = layer.lin_l(tokens).view(1, 8, 2, 8)
    expected = torch.einsum("beht,bthd->behd", attention * ~dropped * 2, messages).flatten(2) + layer.bias
    torch.testing.assert_close(updated, expected)


def test_a_padded_token_may_hold_anything_finite_and_has_no_weight() -> None:
    layer = random_layer(8)
    tokens, mask, targets = random_batch([(4, 1), (4, 3)], 8)
    _, attention = layer(tokens, mask, targets, return_attention=True)
    assert not attention[~mask[:, None, None].expand_as(attention)].any()


def test_state_loads_from_pyg_and_back() -> None:
    twin = GATv2Conv(16, 16, heads=4)
    layer = StarGATv2(16)
    layer.load_state_dict(twin.state_dict())
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        name: tuple(value.shape) for name, value in twin.state_dict().items()
    }


def test_no_gradient_keeps_nothing() -> None:
    layer = random_layer(8)
    tokens, mask, targets = random_batch([(4, 3)], 8)
    with torch.no_grad():
        assert layer(tokens, mask, targets).grad_fn is None


def test_only_the_asked_gradients_are_computed() -> None:
    layer = random_layer(8)
    tokens, mask, targets = random_batch([(4, 3)], 8)
    layer(tokens, mask, targets).sum().backward()
    assert tokens.grad is None and layer.att.grad is not None
    layer.requires_grad_(False)
    layer(tokens.requires_grad_(), mask, targets).sum().backward()
    assert tokens.grad is not None


def test_a_masked_target_names_its_item() -> None:
    layer = random_layer(8)
    tokens, mask, targets = random_batch([(4, 3), (4, 2)], 8)
    mask[1, 4] = False
    with pytest.raises(DataError, match=r"item 1: the CLS token of encoder 1 \(position 4\) is masked out"):
        layer(tokens, mask, targets)


@pytest.mark.parametrize("targets", [[], [0, 7], [-1]])
def test_a_target_outside_the_tokens_is_refused(targets: list[int]) -> None:
    tokens, mask, _ = random_batch([(4, 3)], 8)
    with pytest.raises(DataError, match="from 0 to 6"):
        random_layer(8)(tokens, mask, targets)


@pytest.mark.parametrize(
    "options",
    [{"dim": 0}, {"dim": 4, "heads": 0}, {"dim": 4, "head_dim": 0}, {"dim": 4, "dropout": 1.0}],
    ids=str,
)
def test_impossible_sizes_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="StarGATv2"):
        StarGATv2(**options)  # type: ignore[arg-type]
