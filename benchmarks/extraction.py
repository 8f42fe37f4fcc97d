"""Extraction against the slower of its two sides: decoding on all cores, and the bare backbone's forward pass.

    python benchmarks/extraction.py

Draws clip-art-like pictures and makes up captions, then times in turn for each encoder: decoding and preparing
alone, in as many threads as there are cores; the forward pass alone, on items prepared beforehand; and the whole
extraction, from files to a store. The goal is 90% of the slower of the two sides or more.

Wall time is what a user waits, but on a CPU the two sides share the cores: the ratio of wall times can reach 1 only
where a core is free beside the forward pass's threads. Processor time, of all threads together, is the work itself
and hardly moves with what else the machine does: its ratio is that of the two sides together to the extraction,
so that what is missing to 1 is the storing (float16, checksum, writing) and the pipeline's own work.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from modalloy.data.manifest import Item, Manifest
from modalloy.encoders.base import Encoder
from modalloy.encoders.registry import load_encoder
from modalloy.features import extract
from modalloy.features.assembly import Rejection
from modalloy.features.preparation import Preparation
from modalloy.features.sources import source_of
from modalloy.files import sha256_of
from modalloy.memory import keep_freed_memory

BATCH = 32
GOAL = 0.9
WORDS = ["red", "old", "telephone", "house", "flower", "dog", "woman", "with", "and", "beside", "flying"]


def captions(chance: random.Random) -> tuple[str, ...]:
    """Five sentences of the usual lengths."""
    return tuple(" ".join(chance.choices(WORDS, k=chance.randrange(6, 20))) for _ in range(5))


def draw_pictures(folder: Path, count: int, size: int) -> Manifest:
    """Pictures of overlapping shapes on white, antialiased as rendered clip art is."""
    chance, items = random.Random(0), []
    for number in range(count):
        picture = Image.new("RGB", (3 * size, 3 * size), "white")
        pen = ImageDraw.Draw(picture)
        for _ in range(30):
            corners = [chance.randrange(3 * size) for _ in range(4)]
            box = [*map(min, corners[:2], corners[2:]), *map(max, corners[:2], corners[2:])]
            chance.choice([pen.ellipse, pen.rectangle])(box, fill=tuple(chance.randbytes(3)))
        path = folder / f"{number}.png"
        picture.resize((size, size), Image.Resampling.LANCZOS).save(path)
        items.append(Item(str(number), path.name, sha256_of(path), "test", captions(chance)))
    return Manifest(folder, tuple(items))


@dataclass(frozen=True)
class Seconds:
    wall: float
    processor: float


def seconds(work: Callable[[], object]) -> Seconds:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def measure(encoder: Encoder, manifest: Manifest, processes: bool, rounds: int) -> dict[str, list[Seconds]]:
    """Times each way, one after the other in every round, so that a change of load meets all of them."""
    modality, cores = encoder.modalities[0], len(os.sched_getaffinity(0))
    source = source_of(manifest, modality)
    prepare = Preparation(encoder, modality, source)
    prepared = [item for item in map(prepare, range(len(source))) if not isinstance(item, Rejection)]

    def decode() -> None:
        with ThreadPoolExecutor(cores) as pool:
            for _ in pool.map(prepare, range(len(source))):
                pass

    def forward() -> None:
        for start in range(0, len(prepared), BATCH):
            encoder.forward(modality, prepared[start : start + BATCH])

    def extraction() -> None:
        with tempfile.TemporaryDirectory() as folder:
            extract(encoder, modality, manifest, folder, batch_size=BATCH, processes=processes, progress=False)

    ways: dict[str, Callable[[], object]] = {"decode": decode, "forward": forward, "extract": extraction}
    encoder.forward(modality, prepared[:BATCH])
    times: dict[str, list[Seconds]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            times[name].append(seconds(work))
    return times


def ratios(times: dict[str, list[Seconds]]) -> tuple[float, float]:
    """Of wall time to the slower side's, and of processor time to both sides', each round by itself; the medians."""
    rounds = list(zip(times["decode"], times["forward"], times["extract"], strict=True))
    wall = statistics.median(max(one.wall, other.wall) / whole.wall for one, other, whole in rounds)
    processor = statistics.median((one.processor + other.processor) / whole.processor for one, other, whole in rounds)
    return wall, processor


def report(name: str, workers: str, times: dict[str, list[Seconds]], items: int) -> None:
    speeds = [items / statistics.median(each.wall for each in one) for one in times.values()]
    work = [1e3 * statistics.median(each.processor for each in one) / items for one in times.values()]
    wall, processor = ratios(times)
    verdict = "reached" if wall >= GOAL else "missed"
    numbers = "".join(f"{number:<9.4g}" for number in (*speeds, wall, *work, processor))
    print(f"{name:<20} {workers:<10}{numbers}{verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["efficientnet-lite0", "vit-s14-focus", "minilm"])
    parser.add_argument("--pictures", type=int, default=200, help="a text encoder gets five captions for each")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the forward pass")
    parser.add_argument("--processes", action="store_true", help="also with processes instead of threads")
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        manifest = draw_pictures(Path(folder), options.pictures, options.size)
        load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        print(f"{options.pictures} pictures, {options.rounds} rounds, forward in {options.threads} threads, {load}")
        print(f"{'':<31}{'items/s of wall time':<36}ms of processor time an item")
        print(
            f"{'encoder':<20} {'workers':<10}" + 2 * f"{'decode':<9}{'forward':<9}{'extract':<9}{'ratio':<9}" + "goal"
        )
        for spec in options.encoders:
            encoder = load_encoder(spec)
            items = len(source_of(manifest, encoder.modalities[0]))
            for processes in (False, True) if options.processes else (False,):
                times = measure(encoder, manifest, processes, options.rounds)
                report(spec, "processes" if processes else "threads", times, items)


if __name__ == "__main__":
    main()
