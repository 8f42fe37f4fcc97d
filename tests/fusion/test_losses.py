import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalloy.fusion.losses import (
    MatchingHead,
    contrastive_loss,
    distilled_targets,
    exclude,
    matching_loss,
    positive_targets,
)
from modalloy.fusion.original_hada import FirstStageMatchingHead

sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))
seeds = st.integers(0, 2**16)


def naive_softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


@given(size=sizes, seed=seeds)
def test_contrast_is_the_mean_cross_entropy(size, seed):
    torch.manual_seed(seed)
    logits, targets = 5 * torch.randn(size), torch.rand(size).softmax(-1)
    expected = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        expected -= sum(t * math.log(p) for t, p in zip(target, naive_softmax(row), strict=True))
    assert float(contrastive_loss(logits, targets)) == pytest.approx(expected / size[0], rel=1e-4)


def test_one_positive_per_query_gives_info_nce():
    logits = torch.randn(4, 4)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    torch.testing.assert_close(contrastive_loss(logits, torch.eye(4)), expected)


def test_targets_are_even_over_the_positives():
    positives = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
    assert positive_targets(positives).tolist() == [
        pytest.approx(row) for row in ([1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3])
    ]


@given(size=st.tuples(st.integers(1, 5), st.integers(2, 5)), seed=seeds)
def test_excluded_pairs_are_as_if_they_were_not_there(size, seed):
    torch.manual_seed(seed)
    logits = (5 * torch.randn(size)).requires_grad_()
    excluded = torch.rand(size) < 0.5
    excluded[:, 0] = False
    targets = torch.rand(size).masked_fill(excluded, 0)
    targets = targets / targets.sum(-1, keepdim=True)
    loss = contrastive_loss(exclude(logits, excluded), targets)
    alone = [
        contrastive_loss(row[~out][None], target[~out][None])
        for row, out, target in zip(logits, excluded, targets, strict=True)
    ]
    torch.testing.assert_close(loss, torch.stack(alone).mean())
    assert not exclude(logits, excluded).softmax(-1)[excluded].any()
    (gradient,) = torch.autograd.grad(loss, [logits])
    assert gradient.isfinite().all()
    assert not gradient[excluded].any()


@given(size=sizes, seed=seeds, share=st.floats(0, 1))
def test_distilled_targets_mix_two_distributions(size, seed, share):
    torch.manual_seed(seed)
    targets, logits = torch.rand(size).softmax(-1), 5 * torch.randn(size)
    mixed = distilled_targets(targets, logits, share)
    for row, target, logit in zip(mixed.tolist(), targets.tolist(), logits.tolist(), strict=True):
        soft = naive_softmax(logit)
        expected = [share * s + (1 - share) * t for s, t in zip(soft, target, strict=True)]
        assert row == pytest.approx(expected, abs=1e-5)
        assert sum(row) == pytest.approx(1, abs=1e-5)


def random_head(dim: int) -> MatchingHead:
    head = MatchingHead(dim)
    torch.nn.init.normal_(head.linear.weight)
    torch.nn.init.normal_(head.linear.bias)
    return head


def naive_logit(head: MatchingHead, image: torch.Tensor, text: torch.Tensor) -> float:
    features = [
        *image.tolist(),
        *text.tolist(),
        *(abs(a - b) for a, b in zip(image.tolist(), text.tolist(), strict=True)),
        *(a * b for a, b in zip(image.tolist(), text.tolist(), strict=True)),
    ]
    weights = head.linear.weight[0].tolist()
    return sum(w * f for w, f in zip(weights, features, strict=True)) + head.linear.bias.item()


def test_the_matching_heads_formula():
    torch.manual_seed(0)
    head = random_head(3)
    image, text = torch.randn(4, 3), torch.randn(4, 3)
    expected = [naive_logit(head, i, t) for i, t in zip(image, text, strict=True)]
    assert head(image, text).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_matching_head_drops_in_training_only():
    torch.manual_seed(0)
    head = MatchingHead(3, dropout=0.5)
    image, text = torch.randn(50, 3), torch.randn(50, 3)
    assert not torch.equal(head(image, text), head(image, text))
    head.eval()
    assert torch.equal(head(image, text), head(image, text))


def naive_matching_loss(head, image, text, similarity, related) -> float:
    batch = range(len(image))
    pairs = [(k, k, 1) for k in batch]
    for k in batch:
        texts = [other for other in batch if not related[k, other]]
        if texts:
            pairs.append((k, max(texts, key=lambda other: float(similarity[k, other])), 0))
        images = [other for other in batch if not related[other, k]]
        if images:
            pairs.append((max(images, key=lambda other: float(similarity[other, k])), k, 0))
    total = 0.0
    for i, t, label in pairs:
        logit = naive_logit(head, image[i], text[t])
        total += math.log1p(math.exp(-logit if label else logit))
    return total / len(pairs)


@given(families=st.lists(st.integers(0, 3), min_size=1, max_size=6), seed=seeds)
def test_matching_takes_each_pairs_hardest_unrelated_items(families, seed):
    torch.manual_seed(seed)
    batch = len(families)
    image, text, similarity = torch.randn(batch, 2), torch.randn(batch, 2), torch.randn(batch, batch)
    related = torch.tensor(families)[:, None] == torch.tensor(families)[None, :]
    head = random_head(2)
    loss = matching_loss(head, image, text, similarity, related)
    expected = naive_matching_loss(head, image, text, similarity, related)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def naive_probabilities(row: list[float], allowed: list[bool], temperature: float) -> list[float]:
    kept = iter(naive_softmax([value / temperature for value, ok in zip(row, allowed, strict=True) if ok]))
    return [next(kept) if ok else 0.0 for ok in allowed]


def test_sampled_negatives_follow_the_softmax_of_the_similarities():
    torch.manual_seed(0)
    batch, repeats, temperature = 4, 600, 0.5
    similarity, families = torch.randn(batch, batch), torch.tensor([0, 0, 1, 2])
    related, rows = families[:, None] == families[None, :], torch.arange(float(batch))[:, None]
    texts, images = torch.zeros(2, batch, batch)
    for _ in range(repeats):
        head = Recorder()
        matching_loss(head, rows, rows, similarity, related, temperature)
        for k in range(batch):
            assert head.pairs[batch + k][0] == head.pairs[2 * batch + k][1] == k
            texts[k, head.pairs[batch + k][1]] += 1 / repeats
            images[k, head.pairs[2 * batch + k][0]] += 1 / repeats
    for drawn, scores in ((texts, similarity), (images, similarity.T)):
        for k in range(batch):
            expected = naive_probabilities(scores[k].tolist(), (~related[k]).tolist(), temperature)
            assert drawn[k].tolist() == pytest.approx(expected, abs=0.08)


@given(
    families=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    temperature=st.floats(1e-3, 0.5),
    seed=seeds,
)
def test_sampled_negatives_are_unrelated_at_any_temperature(families, temperature, seed):
    torch.manual_seed(seed)
    batch = len(families)
    related = torch.tensor(families)[:, None] == torch.tensor(families)[None, :]
    # Related pairs far above the others: with a softmax over all, nothing would be left for these.
    similarity = (2 * torch.rand(batch, batch) - 1).masked_fill(related, 1.0)
    rows, head = torch.arange(float(batch))[:, None], Recorder()
    assert matching_loss(head, rows, rows, similarity, related, torch.tensor(temperature)).isfinite()
    assert len(head.pairs) == batch + 2 * int((~related).any(1).sum())
    assert not any(related[image, text] for image, text in head.pairs[batch:])


def test_the_coldest_draw_is_the_hardest_negative():
    torch.manual_seed(0)
    image, text, similarity = torch.randn(5, 2), torch.randn(5, 2), torch.randn(5, 5)
    related, head = torch.eye(5, dtype=torch.bool), random_head(2)
    cold = matching_loss(head, image, text, similarity, related, 1e-3)
    assert cold == matching_loss(head, image, text, similarity, related)


def test_negatives_are_drawn_from_the_global_generator_alone():
    rows, related = torch.arange(6.0)[:, None], torch.eye(6, dtype=torch.bool)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        head = Recorder()
        matching_loss(head, rows, rows, torch.zeros(6, 6), related, 0.07)
        drawn.append(head.pairs)
    assert drawn[0] == drawn[1] != drawn[2]


class Recorder(MatchingHead):
    """Keeps the pairs that it is asked about."""

    def __init__(self) -> None:
        super().__init__(1)
        self.pairs: list[tuple[int, int]] = []

    def forward(self, image, text):
        self.pairs += zip(image[:, 0].int().tolist(), text[:, 0].int().tolist(), strict=True)
        return super().forward(image, text)


def test_related_pairs_are_never_negatives_however_similar():
    rows = torch.arange(4.0)[:, None]
    related = torch.eye(4, dtype=torch.bool)
    related[0, 1] = related[1, 0] = True
    similarity = torch.zeros(4, 4).masked_fill(related, 100.0)
    similarity[0, 3] = similarity[3, 1] = 1.0
    head = Recorder()
    matching_loss(head, rows, rows, similarity, related)
    positives, negatives = head.pairs[:4], head.pairs[4:]
    assert positives == [(k, k) for k in range(4)]
    assert len(negatives) == 8
    assert not any(related[image, text] for image, text in negatives)
    assert negatives[0] == (0, 3)
    assert negatives[5] == (3, 1)


@pytest.mark.parametrize("temperature", [None, 0.001])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_of_one_image_or_family_learns_from_its_positives_alone(batch, temperature):
    torch.manual_seed(0)
    head = random_head(2)
    image, text = torch.randn(batch, 2, requires_grad=True), torch.randn(batch, 2, requires_grad=True)
    related = torch.ones(batch, batch, dtype=torch.bool)
    loss = matching_loss(head, image, text, image @ text.T, related, temperature)
    expected = torch.nn.functional.softplus(-head(image, text)).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert image.grad is not None and image.grad.isfinite().all()


def test_a_head_that_normalises_by_batches_sees_matching_and_other_pairs_together():
    head = FirstStageMatchingHead(3)
    with torch.no_grad():
        # The inner product of the two alone, which is 1 for matching pairs and 0 for others.
        head.linear.weight.copy_(torch.tensor([[0.0] * 9 + [1.0] * 3]))
        head.norm.weight.fill_(10)
        head.norm.bias.fill_(-5)
    rows = torch.eye(3)
    assert matching_loss(head.train(), rows, rows, rows @ rows.T, torch.eye(3, dtype=torch.bool)) < 0.1


def test_the_choice_of_negatives_has_no_gradient():
    torch.manual_seed(0)
    similarity = torch.randn(3, 3, requires_grad=True)
    vectors = torch.randn(3, 2, requires_grad=True)
    loss = matching_loss(random_head(2), vectors, vectors, similarity, torch.eye(3, dtype=torch.bool))
    loss.backward()
    assert similarity.grad is None
    assert vectors.grad is not None
