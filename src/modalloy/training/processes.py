"""Training in several processes of one machine as if in one: each computes its part of every batch's features.

The fused vectors of all parts are gathered, so that every process computes the loss of the whole batch: the contrast
has all negatives, the momentum queues are the same, and the gradients are those of a single process, but for what each
process draws at random for itself: dropout and sampled negatives.
"""

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from jaxtyping import Float
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed

from modalloy.errors import ModalloyError


def rank() -> int:
    """Which of the processes this is; 0 for the one that was started by the user, and where there is but one."""
    return distributed.get_rank() if _several() else 0


def part_of(count: int) -> slice:
    """This process's part of so many pairs.

    >>> part_of(5)
    slice(0, 5, None)
    """
    sizes = _sizes(count)
    start = sum(sizes[: rank()])
    return slice(start, start + sizes[rank()])


def gathered(part: Float[Tensor, "part dim"], count: int) -> Float[Tensor, "batch dim"]:
    """The rows of all processes, in order, of which each has its `part_of(count)`.

    A loss that every process computes of all rows may be differentiated: averaged over the processes, as DDP does,
    the gradients are those of the loss in a single process.

    >>> gathered(torch.ones(2, 1), 2).tolist()
    [[1.0], [1.0]]
    """
    return _Gather.apply(part, count) if _several() else part


def first_says(value: Callable[[], float], device: torch.device) -> float:
    """What the first process computes, in all of them, so that they can't come to different decisions."""
    if not _several():
        return value()
    said = torch.tensor(value() if rank() == 0 else 0.0, dtype=torch.float64, device=device)
    distributed.broadcast(said, src=0)
    return float(said)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _sizes(count: int) -> list[int]:
    processes = distributed.get_world_size() if _several() else 1
    return [count // processes + (process < count % processes) for process in range(processes)]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, part: Tensor, count: int) -> Tensor:
        sizes = _sizes(count)
        context.count = count
        # Collectives take parts of one size.
        padded = part.new_zeros(max(sizes), *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([each[:size] for each, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # DDP takes the mean over the processes, but each has the gradient of its own rows alone: their sum is wanted.
        return gradients[0][part_of(context.count)] * distributed.get_world_size(), None


class Environment(LightningEnvironment):
    """Tells Lightning that the processes of a training are started here, and which of them this one is."""

    def __init__(self, process: int, port: int) -> None:
        super().__init__()
        self._process = process
        self._main_port = port

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"

    def local_rank(self) -> int:
        return self._process


def strategy(environment: Environment) -> DDPStrategy:
    """DDP; the modules' buffers stay what each process makes of them, since all make the same."""
    return DDPStrategy(cluster_environment=environment, find_unused_parameters=True, broadcast_buffers=False)


@contextmanager
def followers(count: int, work: Callable[..., None], *arguments: Any) -> Iterator[Environment]:
    """Further processes that do the same work beside this one; gives what this one tells Lightning.

    Args:
        count: how many processes there are in all.
        work: called in each of the others with its environment and the arguments, of which it has copies.
        arguments: what is pickled for it.

    Raises:
        ModalloyError: a process ended before its work began, or failed after it.
    """
    port = find_free_network_port()
    # Plain pickle: that of torch.multiprocessing would share the weights' memory, and each would train the others'.
    pickled = pickle.dumps(arguments)
    context = multiprocessing.get_context("spawn")
    threads, environ = torch.get_num_threads(), dict(os.environ)
    share = max(1, threads // count)
    ready, processes = [], []
    try:
        for process in range(1, count):
            ours, theirs = context.Pipe(duplex=False)
            started = context.Process(target=_follow, args=(theirs, work, process, port, share, pickled), daemon=True)
            started.start()
            theirs.close()
            ready.append(ours)
            processes.append(started)
        _wait_for(ready)
        torch.set_num_threads(share)
        yield Environment(0, port)
        for started in processes:
            started.join()
            if started.exitcode:
                raise ModalloyError(f"a process of the training ended with status {started.exitcode}; see above.")
    finally:
        for started in processes:
            started.kill()
        torch.set_num_threads(threads)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)
            if name in environ:
                os.environ[name] = environ[name]


def _wait_for(ready: list[Connection]) -> None:
    for connection in ready:
        wait([connection])
        try:
            connection.recv()
        except EOFError:
            raise ModalloyError(
                "a process of the training ended before it began; see above. A script that trains with several "
                "devices must do its work under `if __name__ == '__main__':`."
            ) from None


def _follow(
    ready: Connection, work: Callable[..., None], process: int, port: int, threads: int, pickled: bytes
) -> None:
    # Ctrl-C reaches the whole group; the first process ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    arguments = pickle.loads(pickled)
    ready.send(None)
    work(Environment(process, port), *arguments)
