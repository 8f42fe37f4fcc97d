"""Extraction on several machines through Ray Data: an actor an accelerator, each making whole shards."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from modalloy import errors
from modalloy.encoders.base import Encoder
from modalloy.errors import ConfigError, ModalloyError
from modalloy.features.pipeline import Job, Timing, make_shards

_SHARDS_A_TASK = 4  # within a task the next shard is decoded while the model works on this one
_ANSWER = ("rows", "seconds", "waited", "error", "message")


def require_ray() -> None:
    """Refuses to go on without Ray.

    Raises:
        ConfigError: Ray isn't installed.
    """
    try:
        import ray
        import ray.data  # noqa: F401
    except ImportError:
        raise ConfigError("The runner ray needs Ray, which isn't installed: pip install 'modalloy[ray]'.") from None


def make_shards_with_ray(job: Job, missing: Sequence[int], advance: Callable[[int], None]) -> list[Timing]:
    """Makes the missing shards on the Ray cluster that there is, or on one started on this machine.

    The collection's files and the store's folder must have the same path on each machine. An actor has one
    accelerator, where the cluster has any, and `job.workers` processors. Ray starts a lost actor again, and
    its shards with it; their bytes are the same.

    Raises:
        ConfigError: Ray isn't installed.
    """
    require_ray()
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING, log_to_driver=False, include_dashboard=False)
    # The bar and the log are ours.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()
    accelerators, processors = int(resources.get("GPU", 0)), int(resources["CPU"])
    tasks = -(-len(missing) // _SHARDS_A_TASK)
    actors = max(1, min(accelerators or processors // job.workers, tasks))
    # Not repartitioned: that takes processors of its own, and the actors have them all.
    indices = ray.data.from_items([{"index": index} for index in missing], override_num_blocks=tasks)
    made = indices.map_batches(
        _ShardMaker,
        fn_constructor_args=(ray.put(job),),
        batch_size=_SHARDS_A_TASK,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=min(job.workers, processors // actors) if processors >= actors else 0,
        num_gpus=1 if accelerators else 0,
    )
    timings = []
    for answer in made.iter_rows():
        if answer["error"]:
            raise getattr(errors, answer["error"])(answer["message"])
        advance(int(answer["rows"]))
        timings.append(Timing(float(answer["seconds"]), float(answer["waited"])))
    return timings


class _ShardMaker:
    """An actor: builds the encoder once, then makes shards."""

    def __init__(self, job: Any) -> None:
        import ray

        self._job: Job = ray.get(job)

    @cached_property
    def _encoder(self) -> Encoder:
        # Not when the actor is built, where an error would end it.
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return self._job.load_encoder().to(accelerator or "cpu")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows: list[int] = []
        timing, error, message = Timing(0.0, 0.0), "", ""
        try:
            timing = make_shards(self._encoder, self._job, batch["index"].tolist(), rows.append)
        except ModalloyError as mistake:
            # As a value: Ray would log a remote traceback for what a user can mend.
            error, message = type(mistake).__name__, str(mistake)
        values = (sum(rows), timing.seconds, timing.waited, error, message)
        return {name: np.array([value]) for name, value in zip(_ANSWER, values, strict=True)}
