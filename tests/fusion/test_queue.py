from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalloy.errors import ConfigError
from modalloy.fusion.queue import MomentumQueue


def push(queue: MomentumQueue, numbers: list[int]) -> None:
    """Pair n has image vector [n, -n], text vector [2 n, 0], image n and family n // 2."""
    n = torch.tensor(numbers, dtype=torch.long)
    queue.push(torch.stack([n, -n], 1).float(), torch.stack([2 * n, 0 * n], 1).float(), n, n // 2)


def contents(queue: MomentumQueue) -> list[tuple[list[float], list[float], int, int]]:
    return sorted(
        zip(
            queue.image_vectors.tolist(),
            queue.text_vectors.tolist(),
            queue.images.tolist(),
            queue.families.tolist(),
            strict=True,
        )
    )


@given(capacity=st.integers(0, 6), batches=st.lists(st.integers(0, 9), max_size=8))
def test_it_holds_the_latest_pairs_whatever_the_batches(capacity, batches):
    queue, reference, number = MomentumQueue(capacity, dim=2), deque(maxlen=capacity), 0
    for batch in batches:
        numbers = list(range(number, number + batch))
        number += batch
        push(queue, numbers)
        reference.extend(numbers)
        assert len(queue) == len(reference)
        assert contents(queue) == sorted(([n, -n], [2 * n, 0], n, n // 2) for n in reference)


def test_it_starts_empty():
    queue = MomentumQueue(4, dim=2)
    assert len(queue) == 0
    assert queue.image_vectors.shape == queue.text_vectors.shape == (0, 2)
    assert queue.images.shape == queue.families.shape == (0,)


def test_vectors_are_kept_in_bfloat16_without_gradient():
    queue = MomentumQueue(4, dim=2)
    vectors = torch.tensor([[1.0, 1 / 3]], requires_grad=True)
    queue.push(vectors, 2 * vectors, torch.tensor([5]), torch.tensor([7]))
    for stored, expected in ((queue.image_vectors, vectors), (queue.text_vectors, 2 * vectors)):
        assert stored.dtype == torch.bfloat16
        assert not stored.requires_grad
        assert torch.equal(stored, expected.detach().bfloat16())
    assert (queue.images.tolist(), queue.families.tolist()) == ([5], [7])


def test_what_is_pushed_may_change_afterwards():
    queue, vectors = MomentumQueue(2, dim=2), torch.ones(1, 2)
    queue.push(vectors, vectors, torch.tensor([0]), torch.tensor([0]))
    vectors.zero_()
    assert queue.image_vectors.tolist() == [[1, 1]]


@pytest.mark.parametrize("pushed", [0, 2, 5])
def test_its_state_can_be_saved_and_goes_on(pushed):
    queue, twin = MomentumQueue(3, dim=2), MomentumQueue(3, dim=2)
    push(queue, list(range(pushed)))
    twin.load_state_dict(queue.state_dict())
    assert contents(twin) == contents(queue)
    for each in (queue, twin):
        push(each, [20, 21])
    assert torch.equal(twin.images, queue.images)
    assert contents(twin) == contents(queue)


def test_a_negative_capacity_is_refused():
    with pytest.raises(ConfigError, match="at least 0 pairs, got -1"):
        MomentumQueue(-1, dim=2)
