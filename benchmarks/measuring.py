"""What the benchmarks share: interleaved timing, ratios of it, and a fresh process's peak memory."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

Step = Callable[[], object]


def measure(
    steps: dict[str, Step], rounds: int, clock: Callable[[], float], warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each step, after one warm-up, one after the other in every round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for work in steps.values() if warm_up else ():
        work()
    for _ in range(rounds):
        for name, work in steps.items():
            start = clock()
            work()
            times[name].append(clock() - start)
    return times


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over the rounds."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


def clock_of(device: str) -> Callable[[], float]:
    """Processor time of this process on a CPU, the time of day with all work done on an accelerator."""
    if device == "cpu":
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


def resident(field: str, process: int | str = "self") -> int:
    """Memory of a process in KiB: VmRSS is what it holds now, VmHWM the most it held (Linux)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise OSError(f"/proc/{process}/status has no {field}")


def added_peak(work: Step, device: str = "cpu") -> float:
    """How many MiB one pass adds to this process's peak."""
    small = torch.randn(64, 64, requires_grad=True, device=device)
    (small @ small).sum().backward()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # makes Linux forget the peak so far
    held = resident("VmRSS")
    work()
    return (resident("VmHWM") - held) / 1024


def in_fresh_process(script: str, *arguments: str) -> float:
    """The number that a script prints last."""
    command = [sys.executable, script, *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
