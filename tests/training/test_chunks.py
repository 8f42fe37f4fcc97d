"""Chunks give the large batch's gradient: against a plain pass over everything, and against plain chunks."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modalloy.fusion import EncoderFeatures, InputShape, SplitFeatures, TowerConfig, TowerFuser
from modalloy.training.chunks import encode_in_chunks
from modalloy.training.fusion_module import FusionModule
from modalloy.training.fusion_training import FusionTraining
from modalloy.training.pair_features import PairBatch

SHAPES = [InputShape(4, 5, 6), InputShape(3, 4, 7)]
CONFIG = TowerConfig(token_dim=8, heads=2, dropout=0.0, weighted_inputs=(1,), start="random")
UNUSED = object.__new__(SplitFeatures)
"""In place of the validation items, which no step reads."""


def random_batch(size: int, dtype: torch.dtype = torch.float64) -> PairBatch:
    generator = torch.Generator().manual_seed(1)

    def features(dim: int, width: int) -> EncoderFeatures:
        embedding = torch.randn(size, dim, generator=generator, dtype=dtype)
        tokens = torch.randn(size, 4, width, generator=generator, dtype=dtype)
        mask = torch.arange(4) < torch.randint(1, 5, (size, 1), generator=generator)
        return EncoderFeatures(torch.nn.functional.normalize(embedding, dim=-1), tokens, mask)

    images = torch.arange(size) // 2
    return PairBatch(
        [features(shape.dim, shape.image_width) for shape in SHAPES],
        [features(shape.dim, shape.text_width) for shape in SHAPES],
        images,
        images // 2,
    )


def module_of(chunk_size: int | None, **config) -> FusionModule:
    """A module in double precision with a filled queue, in its second epoch."""
    torch.manual_seed(0)
    fuser = TowerFuser(dataclasses.replace(CONFIG, **config), SHAPES)
    training = FusionTraining(queue_size=9, chunk_size=chunk_size, matching_negatives="sampled")
    module = FusionModule(fuser, training, 100, UNUSED)
    for parameter in module.momentum_towers.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    vectors = torch.nn.functional.normalize(torch.randn(2, 6, fuser.dim), dim=-1)
    module.queue.push(*vectors, torch.arange(6), torch.arange(6) // 2)
    module.double()
    module._trainer = SimpleNamespace(num_training_batches=1, global_step=1)
    module.log_dict = lambda *_, **__: None
    return module


def step(module: FusionModule, batch: PairBatch) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradient of all that is trained."""
    torch.manual_seed(5)
    loss = module.training_step(batch, 0)
    trained = [p for p in module.parameters() if p.requires_grad]
    return loss, torch.autograd.grad(loss, trained)


@settings(max_examples=6)
@given(size=st.integers(2, 9), chunk=st.integers(1, 10))
def test_a_step_in_chunks_has_the_whole_batchs_gradient(size, chunk):
    batch = random_batch(size)
    for method in ("hada", "concat-linear"):
        loss, gradients = step(module_of(chunk, method=method), batch)
        expected, wanted = step(module_of(None, method=method), batch)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        for got, want in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_dropout_is_that_of_plain_chunks_with_the_same_random_numbers(monkeypatch, autocast):
    batch = random_batch(7, torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, gradients = step(module_of(3, dropout=0.5).float(), batch)
        monkeypatch.setattr("modalloy.training.chunks.checkpoint", lambda encode, chunk, **_: encode(chunk))
        expected, wanted = step(module_of(3, dropout=0.5).float(), batch)
        other = step(module_of(7, dropout=0.5).float(), batch)[0]
    assert loss == expected != other
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_the_random_numbers_after_a_step_are_those_of_plain_chunks():
    batch, after = random_batch(7), []
    for backward in (False, True):
        module = module_of(3, dropout=0.5)
        torch.manual_seed(5)
        loss = module.training_step(batch, 0)
        if backward:
            loss.backward()
        after.append(torch.rand(3).tolist())
    assert after[0] == after[1]


class Watched(torch.autograd.Function):
    """Counts the chunks whose graph is held."""

    held = most = calls = 0

    @staticmethod
    def forward(ctx, vectors: Tensor) -> Tensor:
        Watched.held += 1
        Watched.calls += 1
        Watched.most = max(Watched.most, Watched.held)
        ctx.save_for_backward(vectors)
        return vectors * vectors

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (vectors,) = ctx.saved_tensors
        Watched.held -= 1
        return 2 * gradient * vectors


def test_the_backward_pass_holds_one_chunk_at_a_time():
    weight = torch.ones(4, requires_grad=True)
    features = random_batch(8).image[:1]
    vectors = encode_in_chunks(lambda chunk: Watched.apply(chunk[0].embedding * weight), features, 2)
    Watched.held = Watched.most = Watched.calls = 0
    vectors.sum().backward()
    assert (Watched.most, Watched.held, Watched.calls) == (1, 0, 4)
    torch.testing.assert_close(weight.grad.double(), 2 * (features[0].embedding ** 2).sum(0), rtol=1e-5, atol=1e-5)


def test_without_a_size_the_batch_is_encoded_once():
    features, seen = random_batch(5).text, []
    vectors = encode_in_chunks(lambda inputs: seen.append(inputs) or inputs[0].embedding, features, None)
    assert seen == [features] and torch.equal(vectors, features[0].embedding)


def test_chunks_hold_the_items_in_order_and_copy_nothing():
    features, seen = random_batch(5).text, []
    vectors = encode_in_chunks(lambda inputs: seen.append(inputs) or inputs[1].embedding, features, 2)
    assert torch.equal(vectors, features[1].embedding)
    assert [len(chunk[0].embedding) for chunk in seen] == [2, 2, 1]
    assert seen[1][0].tokens.data_ptr() == features[0].tokens[2:].data_ptr()
    assert torch.equal(seen[1][0].mask, features[0].mask[2:4])
