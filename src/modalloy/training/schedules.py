"""Learning-rate schedules, counted in optimiser steps so that resuming at an epoch's end can't skip one."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine(optimizer: Optimizer, steps: int, *, floor: float = 0.0, warmup: int = 0, start: int = 0) -> LambdaLR:
    """A linear rise over `warmup` steps, then half a cosine down to `floor` times the full rate at `steps`.

    With `start` it goes on where an earlier optimiser's ended after so many steps.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = cosine(optimizer, steps=4, floor=0.5)
    >>> [round(schedule.lr_lambdas[0](step), 3) for step in range(5)]
    [1.0, 0.927, 0.75, 0.573, 0.5]
    """

    falling = max(1, steps - warmup)
    factor = _after_warmup(lambda step: _half_cosine(step / falling, floor), warmup)
    return LambdaLR(optimizer, lambda step: factor(start + step))


def restarts(optimizer: Optimizer, period: int, *, growth: int = 2, floor: float = 0.0, warmup: int = 0) -> LambdaLR:
    """Half a cosine down to `floor` over `period` steps, again and again, each `growth` times as long (SGDR, HADA).

    Args:
        optimizer: what is scheduled.
        period: steps of the first cosine, at least 1.
        growth: by how much each cosine is longer than the one before; 1 for equal ones.
        floor: share of the full rate at a cosine's end.
        warmup: steps of a linear rise before the first cosine.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = restarts(optimizer, period=2)
    >>> [round(schedule.lr_lambdas[0](step), 3) for step in range(7)]
    [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]
    """

    def factor(step: int) -> float:
        length = period
        while step >= length:
            step, length = step - length, length * growth
        return _half_cosine(step / length, floor)

    return LambdaLR(optimizer, _after_warmup(factor, warmup))


def constant(optimizer: Optimizer, *, warmup: int = 0) -> LambdaLR:
    """A linear rise over `warmup` steps, then always the full rate.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = constant(optimizer, warmup=1)
    >>> [schedule.lr_lambdas[0](step) for step in range(3)]
    [0.5, 1.0, 1.0]
    """
    return LambdaLR(optimizer, _after_warmup(lambda _: 1.0, warmup))


def step_decay(optimizer: Optimizer, every: int, *, factor: float = 0.1, start: int = 0) -> LambdaLR:
    """The learning rate times `factor` after each `every` steps (HACAN: a tenth every 10 epochs).

    With `start` it goes on where an earlier optimiser's ended after so many steps.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = step_decay(optimizer, every=2, factor=0.5)
    >>> [schedule.lr_lambdas[0](step) for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return LambdaLR(optimizer, lambda step: factor ** ((start + step) // every))


def per_step(schedule: LambdaLR) -> dict[str, object]:
    """The form in which Lightning's `configure_optimizers` takes a schedule that moves at every step."""
    return {"scheduler": schedule, "interval": "step"}


def _half_cosine(done: float, floor: float) -> float:
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _after_warmup(factor: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    return lambda step: (step + 1) / (warmup + 1) if step < warmup else factor(step - warmup)
