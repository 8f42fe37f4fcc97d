"""Learning-rate schedules, counted in optimiser steps so that resuming at an epoch's end can't skip one."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine(optimizer: Optimizer, steps: int, *, floor: float = 0.0, warmup: int = 0) -> LambdaLR:
    """A linear rise over `warmup` steps, then half a cosine down to `floor` times the full rate at `steps`.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = cosine(optimizer, steps=4, floor=0.5)
    >>> [round(schedule.lr_lambdas[0](step), 3) for step in range(5)]
    [1.0, 0.927, 0.75, 0.573, 0.5]
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


def step_decay(optimizer: Optimizer, every: int, *, factor: float = 0.1) -> LambdaLR:
    """The learning rate times `factor` after each `every` steps (HACAN: a tenth every 10 epochs).

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = step_decay(optimizer, every=2, factor=0.5)
    >>> [schedule.lr_lambdas[0](step) for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return LambdaLR(optimizer, lambda step: factor ** (step // every))


def per_step(schedule: LambdaLR) -> dict[str, object]:
    """The form in which Lightning's `configure_optimizers` takes a schedule that moves at every step."""
    return {"scheduler": schedule, "interval": "step"}
