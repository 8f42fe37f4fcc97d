"""How many threads the arithmetic uses."""

import os

import torch

from modalloy.errors import ConfigError

ENVIRONMENT_VARIABLE = "MODALLOY_THREADS"


def default_threads() -> int:
    """The thread count to use: MODALLOY_THREADS, else OMP_NUM_THREADS, else the cores that are free now.

    On a loaded machine more OpenMP threads than free cores are slower than one, since every parallel region
    waits for its last thread; so the one-minute load average is taken off the cores this process may run on.

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
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, cores - round(load))


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
