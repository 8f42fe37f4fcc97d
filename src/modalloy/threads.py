"""How many threads the arithmetic uses."""

import os
import time
from pathlib import Path

import torch

from modalloy.errors import ConfigError

ENVIRONMENT_VARIABLE = "MODALLOY_THREADS"
_PROCESSOR_TIMES = Path("/proc/stat")
_IDLE = 3
_SAMPLE_SECONDS = 0.2


def default_threads() -> int:
    """The thread count to use: MODALLOY_THREADS, else OMP_NUM_THREADS, else the cores that are free now.

    On a loaded machine more OpenMP threads than free cores are slower than one, since every parallel region
    waits for its last thread.

    Raises:
        ConfigError: the variable set isn't a positive whole number.
    """
    for variable in (ENVIRONMENT_VARIABLE, "OMP_NUM_THREADS"):
        # OpenMP allows a list, one count a nesting level; the first is that of the outermost.
        wanted = os.environ.get(variable, "").split(",")[0].strip()
        if wanted:
            if not wanted.isdecimal() or int(wanted) < 1:
                raise ConfigError(f"{variable} must be a positive whole number, got {wanted!r}.")
            return int(wanted)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, round(cores * _idle_share()))


def _idle_share() -> float:
    """The share of processor time that nothing used in the last moment; 1 where the system doesn't tell.

    Not the load average, which still counts, a minute later, an installation that is over.
    """
    before = _processor_times()
    time.sleep(_SAMPLE_SECONDS)
    after = _processor_times()
    total = sum(after) - sum(before)
    return (after[_IDLE] - before[_IDLE]) / total if total else 1.0


def _processor_times() -> list[int]:
    if not _PROCESSOR_TIMES.exists():
        return [0] * (_IDLE + 1)
    with _PROCESSOR_TIMES.open(encoding="ascii") as lines:
        # Guest time, the last two numbers, is contained in user time.
        return [int(number) for number in next(lines).split()[1:9]]


def set_threads(threads: int | None = None) -> int:
    """Sets PyTorch's thread count to `threads` (default: `default_threads()`) and returns it.

    Raises:
        ConfigError: `threads` is smaller than 1.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}; leave it out for a sensible choice.")
    count = threads or default_threads()
    torch.set_num_threads(count)
    return count
