import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch.nn.functional import normalize

from modalloy.errors import DataError
from modalloy.evaluation import EmbeddingScores
from modalloy.fusion.learned_weights import learn_weights
from modalloy.fusion.part_scores import PartScores

# Images of no, one and several captions, in mixed order.
CAPTION_IMAGE = torch.tensor([3, 0, 1, 1, 4, 0, 5, 6, 6, 6, 7, 8, 9, 4, 10, 11])


def toy(noise: tuple[float, ...], images: int = 12):
    generator = torch.Generator().manual_seed(0)
    scores = []
    for each in noise:
        image = torch.randn(images, 4, generator=generator)
        text = image[CAPTION_IMAGE] + each * torch.randn(len(CAPTION_IMAGE), 4, generator=generator)
        scores.append(EmbeddingScores(normalize(image, dim=-1), normalize(text, dim=-1)))
    return scores


def naive_loss(matrices: np.ndarray, weights: np.ndarray, temperature: float) -> float:
    logits = np.tensordot(weights, matrices, 1) / temperature
    of = CAPTION_IMAGE.numpy()
    images = [i for i in range(logits.shape[0]) if (of == i).any()]
    by_image = np.mean([logsumexp(logits[i]) - logits[i, of == i].mean() for i in images])
    by_caption = np.mean([logsumexp(logits[:, c]) - logits[of[c], c] for c in range(len(of))])
    return float(by_image + by_caption) / 2


@pytest.mark.parametrize("held_bytes", [0, 2**30])
@pytest.mark.parametrize("noise", [(0.5, 0.8), (0.6, 5.0, 0.7), (0.9, 0.9, 0.9, 9.0)])
def test_the_weights_are_those_of_a_general_solver_over_weights_and_temperature(noise, held_bytes):
    scores = toy(noise)
    matrices = np.stack([each.score(slice(None), slice(None)).double().numpy() for each in scores])
    count = len(noise)
    expected = minimize(
        lambda x: naive_loss(matrices, x[:-1], np.exp(x[-1])),
        [*[1 / count] * count, np.log(0.1)],
        method="SLSQP",
        bounds=[(0, 1)] * count + [(np.log(1e-3), np.log(10))],
        constraints={"type": "eq", "fun": lambda x: x[:-1].sum() - 1},
        options={"ftol": 1e-13, "maxiter": 500},
    )
    weights = learn_weights(PartScores(scores, CAPTION_IMAGE, held_bytes))
    assert weights == pytest.approx(expected.x[:-1], abs=2e-3)
    assert naive_loss(matrices, np.array(weights), np.exp(expected.x[-1])) <= expected.fun + 1e-6
    assert sum(weights) == pytest.approx(1) and min(weights) >= 0


def test_it_is_deterministic_and_follows_the_parts_order():
    scores = toy((0.6, 1.5, 0.8))
    weights = learn_weights(PartScores(scores, CAPTION_IMAGE))
    assert learn_weights(PartScores(scores, CAPTION_IMAGE)) == weights
    assert learn_weights(PartScores(scores[::-1], CAPTION_IMAGE)) == pytest.approx(weights[::-1], abs=1e-4)


def test_parts_that_tell_nothing_apart_are_weighed_evenly():
    image, text = torch.eye(4), -torch.eye(4)
    scores = [EmbeddingScores(image, text)] * 2
    assert learn_weights(PartScores(scores, torch.arange(4))) == (0.5, 0.5)


def test_scores_that_are_not_finite_are_refused():
    scores = toy((0.5, 0.5))
    image = torch.eye(12)
    image[0, 0] = torch.nan
    broken = EmbeddingScores(image, torch.eye(12)[CAPTION_IMAGE])
    with pytest.raises(DataError, match="aren't finite"):
        learn_weights(PartScores([scores[0], broken], CAPTION_IMAGE))
