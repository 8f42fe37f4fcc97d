"""Losses on local scores against loops, for HACAN as its paper and as its code has it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modalloy.align import Negatives, f_hn, gcd, hacan_loss, hardest_negatives, local_hinge, m_hn, same_item
from modalloy.align.local_losses import original_hacan_loss, original_negatives
from modalloy.errors import ConfigError

LOSSES = {"m_hn": m_hn, "f_hn": f_hn, "gcd": gcd}


def unit(rows: int) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(rows, 3), dim=-1)


@st.composite
def batches(draw):
    """Scores, global embeddings and which items are of one image."""
    size = draw(st.integers(1, 6))
    groups = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    torch.manual_seed(draw(st.integers(0, 10_000)))
    # Scores as after training, too, where some margins are kept.
    score = torch.rand(size, size) + draw(st.sampled_from([0.0, 0.5, 2.0])) * torch.eye(size)
    return score, unit(size), unit(size), same_item(torch.tensor(groups))


def loop_hinges(score, same, margin) -> list[list[float]]:
    """The largest hinge of each row, and of each column, that has an allowed negative."""
    size = range(len(score))
    found = []
    for value in (lambda i, j: float(score[i, j]), lambda i, j: float(score[j, i])):
        allowed = {i: [j for j in size if j != i and not same[i, j]] for i in size}
        found.append(
            [max(max(0.0, value(i, j) + margin - value(i, i)) for j in allowed[i]) for i in size if allowed[i]]
        )
    return found


@given(batches(), st.sampled_from([0.05, 0.2, 0.6]))
def test_hinges_equal_the_loop(batch, margin):
    score, _, _, same = batch
    negatives = hardest_negatives(score, same)
    hinges = loop_hinges(score, same, margin)
    mean = sum(sum(each) / len(each) for each in hinges if each)
    assert local_hinge(score, negatives, margin=margin).item() == pytest.approx(mean, abs=1e-5)
    summed = local_hinge(score, negatives, margin=margin, reduction="sum")
    assert summed.item() == pytest.approx(sum(map(sum, hinges)), abs=1e-5)


@given(batches(), st.sampled_from(sorted(LOSSES)))
def test_the_whole_loss_is_the_hinge_and_the_global_loss_on_its_negatives(batch, loss):
    score, image, text, same = batch
    negatives = hardest_negatives(score, same)
    expected = local_hinge(score, negatives) + 10 / 64 * LOSSES[loss](image, text, same, negatives=negatives)
    torch.testing.assert_close(hacan_loss(score, image, text, same, loss=loss), expected)


def test_at_the_original_batch_size_the_balance_is_the_original():
    torch.manual_seed(0)
    score, image, text = torch.rand(64, 64), unit(64), unit(64)
    ours = hacan_loss(score, image, text, same_item(torch.arange(64)), loss="m_hn")
    torch.testing.assert_close(64 * ours, original_hacan_loss(score, image, text, loss="m_hn"))


@given(batches())
def test_gradients_reach_three_scores_of_a_pair_and_stay_finite(batch):
    score, image, text, same = batch
    score = score.requires_grad_()
    hacan_loss(score, image, text, same).backward()
    assert score.grad.isfinite().all()
    assert (score.grad != 0).sum() <= 3 * len(score)
    if same.all():
        assert not score.grad.any()


def loop_original(score, image, text, loss, margin) -> float:
    """HACAN's code in loops: only the diagonal is excluded, index 0 is the last resort, the mask meets all pairs."""
    size = range(len(score))
    local, negatives = 0.0, []
    for value in (lambda i, j: float(score[i, j]), lambda i, j: float(score[j, i])):
        hinges = [[0.0 if i == j else max(0.0, value(i, j) + margin - value(i, i)) for j in size] for i in size]
        local += sum(map(max, hinges))
        negatives.append([row.index(max(row)) for row in hinges])
    texts, images = negatives
    overall = 0.0
    for i in size:

        def hinge(a, b, i=i) -> float:
            return max(0.0, float(a @ b) + margin - float(image[i] @ text[i])) / len(score)

        overall += hinge(image[i], text[texts[i]]) + hinge(image[images[i]], text[i])
        if loss == "m_hn":
            continue
        overall += hinge(image[i], image[images[i]]) + hinge(text[i], text[texts[i]])
        overall += hinge(image[images[i]], text[texts[i]]) * sum(texts[j] == images[j] for j in size) / len(score)
        if loss == "gcd":
            for j in (texts[i], images[i]):
                gap = abs(float(image[i] @ image[j]) - float(text[i] @ text[j]))
                overall += max(0.0, gap - 0.2) / len(score)
    return local + 10 * overall


@given(batches(), st.sampled_from(sorted(LOSSES)), st.sampled_from([0.05, 0.2, 0.6]))
def test_the_original_loss_equals_its_loop(batch, loss, margin):
    score, image, text, _ = batch
    found = original_hacan_loss(score, image, text, loss=loss, margin=margin)
    assert found.item() == pytest.approx(loop_original(score, image, text, loss, margin), abs=1e-4)


def test_the_original_takes_item_0_where_all_margins_are_kept():
    score = torch.eye(4) + torch.tensor([0.0, 0.3, 0.1, 0.2])
    everything = torch.ones(4, dtype=torch.bool)
    found, nothing = original_negatives(score), torch.zeros(4, dtype=torch.long)
    assert torch.equal(found.text, nothing) and torch.equal(found.image, nothing)
    assert torch.equal(found.has_text, everything) and torch.equal(found.has_image, everything)
    ours: Negatives = hardest_negatives(score, same_item(torch.arange(4)))
    assert ours.text.tolist() == [1, 3, 1, 1]


def test_other_reductions_are_refused():
    score = torch.eye(2)
    negatives = hardest_negatives(score, same_item(torch.arange(2)))
    undecorated = local_hinge.__wrapped__  # past the type checks that only the tests have
    with pytest.raises(ConfigError, match="reduction must be 'mean' or 'sum', got 'max'"):
        undecorated(score, negatives, reduction="max")
