from functools import partial
from itertools import pairwise

import pytest
import torch

from modalloy.training.schedules import constant, cosine, per_step, restarts, step_decay


def rates(make_schedule, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = make_schedule(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_cosine_rises_then_falls_to_its_floor_and_stays():
    seen = rates(lambda optimizer: cosine(optimizer, 10, floor=0.1, warmup=3), 14)
    assert seen[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert all(later < earlier for earlier, later in pairwise(seen[3:11]))
    assert seen[10:] == pytest.approx([0.2] * 4)


def test_cosine_agrees_with_torchs_cosine_annealing():
    ours = rates(lambda optimizer: cosine(optimizer, 10, floor=0.1), 11)
    theirs = rates(lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0.2), 11)
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("growth", [1, 2, 3])
def test_restarts_agree_with_torchs_warm_restarts(growth):
    torchs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts
    ours = rates(lambda optimizer: restarts(optimizer, 4, growth=growth, floor=0.1), 40)
    theirs = rates(lambda optimizer: torchs(optimizer, T_0=4, T_mult=growth, eta_min=0.2), 40)
    assert ours == pytest.approx(theirs)
    warm = rates(lambda optimizer: restarts(optimizer, 4, growth=growth, floor=0.1, warmup=3), 43)
    assert warm == pytest.approx([0.5, 1.0, 1.5, *theirs])


def test_a_constant_rate_rises_and_stays():
    assert rates(lambda optimizer: constant(optimizer, warmup=1), 4) == pytest.approx([1.0, 2.0, 2.0, 2.0])


def test_step_decay_agrees_with_torchs_step_lr():
    ours = rates(lambda optimizer: step_decay(optimizer, 3, factor=0.2), 10)
    theirs = rates(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.2), 10)
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize(
    "schedule",
    [partial(cosine, steps=10, floor=0.1, warmup=4), partial(step_decay, every=3)],
    ids=["cosine", "step_decay"],
)
def test_a_schedule_goes_on_where_an_earlier_one_ended(schedule):
    whole = rates(schedule, 12)
    assert rates(partial(schedule, start=2), 10) == pytest.approx(whole[2:])
    assert rates(partial(schedule, start=7), 5) == pytest.approx(whole[7:])


def test_per_step_is_what_lightning_takes():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = cosine(optimizer, 2)
    assert per_step(schedule) == {"scheduler": schedule, "interval": "step"}
