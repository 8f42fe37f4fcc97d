"""HACAN's losses against loops that read like the paper's formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modalloy.align import Negatives, f_hn, gcd, hardest_negatives, info_nce, m_hn, same_item

LOSSES = [m_hn, f_hn, gcd]


def unit(rows: int, dim: int = 3) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(rows, dim), dim=-1)


@st.composite
def batches(draw):
    """Images, texts, and which are of the same family; sometimes one family holds the whole batch."""
    size = draw(st.integers(1, 7))
    groups = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    torch.manual_seed(draw(st.integers(0, 10_000)))
    image, text = unit(size), unit(size)
    if draw(st.booleans()):  # matching embeddings, as after training, where few hinges are active
        text = nn.functional.normalize(image + 0.1 * text, dim=-1)
    return image, text, same_item(torch.tensor(groups))


def loop_negatives(similarity, same) -> tuple[list[int | None], list[int | None]]:
    size = len(same)
    texts: list[int | None] = []
    images: list[int | None] = []
    for i in range(size):
        allowed = [j for j in range(size) if j != i and not same[i, j]]
        texts.append(max(allowed, key=lambda j: similarity[i][j]) if allowed else None)
        allowed = [j for j in range(size) if j != i and not same[j, i]]
        images.append(max(allowed, key=lambda j: similarity[j][i]) if allowed else None)
    return texts, images


def loop_loss(name, image, text, texts, images, margin) -> float:
    def mean(values):
        return sum(values) / len(values) if values else 0.0

    def dot(a, b):
        return float(a @ b)

    pairs = range(len(image))

    def h(similarity_of):
        """The mean hinge over the pairs that `similarity_of` gives a number for."""
        return mean(
            [
                max(0.0, similarity_of(i) + margin - dot(image[i], text[i]))
                for i in pairs
                if similarity_of(i) is not None
            ]
        )

    loss = h(lambda i: None if texts[i] is None else dot(image[i], text[texts[i]]))
    loss += h(lambda i: None if images[i] is None else dot(image[images[i]], text[i]))
    if name == "m_hn":
        return loss
    loss += h(lambda i: None if images[i] is None else dot(image[i], image[images[i]]))
    loss += h(lambda i: None if texts[i] is None else dot(text[i], text[texts[i]]))
    loss += h(lambda i: None if texts[i] is None or texts[i] != images[i] else dot(image[images[i]], text[texts[i]]))
    if name == "f_hn":
        return loss
    for negatives in (texts, images):
        loss += mean(
            [
                max(0.0, abs(dot(image[i], image[j]) - dot(text[i], text[j])) - margin)
                for i, j in enumerate(negatives)
                if j is not None
            ]
        )
    return loss


@given(batches(), st.sampled_from(LOSSES), st.sampled_from([0.05, 0.2, 0.6]))
def test_losses_equal_the_loops(batch, loss, margin):
    image, text, same = batch
    texts, images = loop_negatives((image @ text.T).tolist(), same)
    expected = loop_loss(loss.__name__, image, text, texts, images, margin)
    assert loss(image, text, same, margin=margin).item() == pytest.approx(expected, abs=1e-5)


@given(batches())
def test_hardest_negatives_equal_the_loop(batch):
    image, text, same = batch
    similarity = image @ text.T
    negatives = hardest_negatives(similarity, same)
    texts, images = loop_negatives(similarity.tolist(), same)
    assert negatives.has_text.tolist() == [index is not None for index in texts]
    assert negatives.has_image.tolist() == [index is not None for index in images]
    for found, has, expected in (
        (negatives.text, negatives.has_text, texts),
        (negatives.image, negatives.has_image, images),
    ):
        assert found[has].tolist() == [index for index in expected if index is not None]


@given(batches(), st.sampled_from([*LOSSES, info_nce]))
def test_gradients_are_finite_and_a_batch_without_negatives_teaches_nothing(batch, loss):
    image, text, same = batch
    image, text = image.requires_grad_(), text.requires_grad_()
    value = loss(image, text, same)
    value.backward()
    assert value.isfinite() and image.grad.isfinite().all() and text.grad.isfinite().all()
    if same.all():
        assert value.item() == 0 and not image.grad.any() and not text.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_given_negatives_are_used_as_they_are(loss):
    torch.manual_seed(0)
    image, text, same = unit(4), unit(4), same_item(torch.arange(4))
    local_score = torch.randn(4, 4)
    negatives = hardest_negatives(local_score, same)
    texts, images = loop_negatives(local_score.tolist(), same)
    expected = loop_loss(loss.__name__, image, text, texts, images, 0.2)
    assert loss(image, text, same, negatives=negatives).item() == pytest.approx(expected, abs=1e-5)
    assert loss(image, text, same).item() != pytest.approx(expected, abs=1e-3)


def test_families_are_no_negatives_though_more_similar():
    image = torch.eye(4)
    text = torch.eye(4)
    similarity = torch.tensor([[1.0, 0.9, 0.1, 0.3], [0.9, 1.0, 0.2, 0.1], [0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.6, 1.0]])
    negatives = hardest_negatives(similarity, same_item(torch.tensor([0, 0, 1, 2])))
    assert negatives.text.tolist()[:2] == [3, 2]
    everything_satisfied = m_hn(image, text, same_item(torch.arange(4)))
    assert everything_satisfied.item() == 0  # where HACAN's own arg-max would fall back to index 0


def test_terms_are_means_so_a_repeated_batch_has_the_same_loss():
    torch.manual_seed(1)
    image, text, groups = unit(5), unit(5), torch.arange(5)
    for loss in LOSSES:
        once = loss(image, text, same_item(groups))
        twice = loss(image.repeat(2, 1), text.repeat(2, 1), same_item(groups.repeat(2)))
        torch.testing.assert_close(once, twice)


def test_the_same_pair_term_counts_only_pairs_whose_negatives_agree():
    image = unit(3)
    text = image.clone()
    have = torch.ones(3, dtype=torch.bool)
    agree = Negatives(torch.tensor([1, 2, 0]), torch.tensor([1, 0, 1]), have, have)
    same = same_item(torch.arange(3))
    # With texts equal to images, each cross-modal term has the value of its within-modality twin.
    cross = m_hn(image, text, same, negatives=agree)
    same_pair = f_hn(image, text, same, negatives=agree) - 2 * cross
    torch.testing.assert_close(same_pair, torch.tensor(0.2))


def test_info_nce_equals_the_loop():
    torch.manual_seed(2)
    image, text = unit(5), unit(5)
    same = same_item(torch.tensor([0, 1, 0, 2, 3]))
    expected = 0.0
    for queries, keys in ((image, text), (text, image)):
        for i in range(5):
            allowed = [j for j in range(5) if j == i or not same[i, j]]
            logits = torch.stack([queries[i] @ keys[j] / 0.1 for j in allowed])
            expected -= float(logits.log_softmax(0)[allowed.index(i)]) / 10
    assert info_nce(image, text, same, temperature=0.1).item() == pytest.approx(expected, abs=1e-5)
