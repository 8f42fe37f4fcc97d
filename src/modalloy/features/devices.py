"""Extraction on several devices: one process each, which takes the next shard as soon as it is free."""

from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import Synchronized
from typing import TYPE_CHECKING, Any

import torch

from modalloy.errors import ConfigError, FeatureError, ModalloyError
from modalloy.features.pipeline import Job, Timing, in_turn, make_shards
from modalloy.memory import keep_freed_memory

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

_LOOK_SECONDS = 0.2


def available_devices() -> tuple[str, ...]:
    """All accelerators, such as ("cuda:0", "cuda:1"); ("cpu",) where there is none."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ("cpu",)
    return tuple(f"{accelerator.type}:{number}" for number in range(torch.accelerator.device_count()))


def require_devices(devices: Sequence[str]) -> None:
    """Refuses devices that this machine hasn't.

    Raises:
        ConfigError: names one.
    """
    available = available_devices()
    for name in devices:
        try:
            device = torch.device(name)
        except RuntimeError:
            device = torch.device("meta")
        kinds = {torch.device(each).type for each in available}
        numbered = f"{device.type}:{device.index or 0}"
        if device.type != "cpu" and not (device.type in kinds and numbered in available):
            raise ConfigError(f"there is no device {name!r} here; choose among {', '.join({*available, 'cpu'})}.")


def make_shards_on(
    devices: Sequence[str], job: Job, missing: Sequence[int], advance: Callable[[int], None]
) -> list[Timing]:
    """Makes the missing shards, in one process a device; each builds the encoder by its spec.

    Raises:
        FeatureError: a process was killed.
        ConfigError: the spec doesn't build the encoder.
        ModalloyError: what went wrong in a process, as it was raised there.
    """
    from torch.multiprocessing import get_context
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

    context = get_context("spawn")
    turn, done, answers = context.Value("q", 0), context.Value("q", 0), context.SimpleQueue()
    threads = max(1, torch.get_num_threads() // len(devices))
    running = start_processes(
        _work,
        (job, missing, tuple(devices), threads, turn, done, answers),
        len(devices),
        join=False,
        start_method="spawn",
    )
    shown = 0
    try:
        while not running.join(_LOOK_SECONDS):
            shown, before = done.value, shown
            advance(shown - before)
    except ProcessRaisedException:
        while not answers.empty():
            if isinstance(answer := answers.get(), Exception):
                raise answer from None
        raise
    except ProcessExitedException as error:
        raise FeatureError(
            f"The process that extracts on {devices[error.error_index]} died ({error}), perhaps for want of memory. "
            "Run the same step again: the shards that are stored are kept."
        ) from None
    finally:
        # What is left of them where one failed, or this process was interrupted.
        for process in running.processes:
            process.terminate()
            process.join()
    advance(done.value - shown)
    return [answers.get() for _ in devices]


def _work(
    number: int,
    job: Job,
    missing: Sequence[int],
    devices: Sequence[str],
    threads: int,
    turn: "Synchronized[int]",
    done: "Synchronized[int]",
    answers: "SimpleQueue[Any]",
) -> None:
    def draw() -> int:
        with turn.get_lock():
            turn.value += 1
            return turn.value - 1

    def advance(rows: int) -> None:
        with done.get_lock():
            done.value += rows

    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        encoder = job.load_encoder().to(devices[number])
        answers.put(make_shards(encoder, job, in_turn(missing, draw), advance))
    except (ModalloyError, OSError, MemoryError) as error:
        answers.put(error)
        raise
