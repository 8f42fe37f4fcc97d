"""Extraction against the bare backbone's forward pass on the same pictures, already decoded.

    python benchmarks/extraction.py

Draws clip-art-like pictures, then times in turn, with one and two threads: the forward pass on tensors
prepared beforehand, the whole extraction from files to a store, and decoding and preparing alone. The goal is
at most 5% over the forward pass.

Wall time is what a user waits. Processor time, of all threads together, is the work itself and hardly moves
with what else the machine does; with two threads it counts OpenMP's waiting too. On a loaded machine that
waiting slows the bare forward pass more than the extraction, whose further threads make libgomp sleep instead
of spin: read the lines of two threads on a quiet one.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from modalloy.data.images import open_image
from modalloy.data.manifest import Item, Manifest
from modalloy.encoders.base import Encoder
from modalloy.encoders.registry import load_encoder
from modalloy.features import extract
from modalloy.files import sha256_of
from modalloy.memory import keep_freed_memory

BATCH = 32
GOAL = 5.0  # per cent over the forward pass


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
        items.append(Item(str(number), path.name, sha256_of(path), "test", ()))
    return Manifest(folder, tuple(items))


@dataclass(frozen=True)
class Seconds:
    wall: float
    processor: float


def seconds(work: Callable[[], object]) -> Seconds:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def measure(encoder: Encoder, manifest: Manifest, workers: int, rounds: int) -> dict[str, list[Seconds]]:
    """Times each way, one after the other in every round, so that a change of load meets all of them."""
    paths = [manifest.absolute(item) for item in manifest]
    prepared = [encoder.preprocess("image", open_image(path)) for path in paths]

    def forward() -> None:
        for start in range(0, len(prepared), BATCH):
            encoder.forward("image", prepared[start : start + BATCH])

    def extraction() -> None:
        with tempfile.TemporaryDirectory() as folder:
            extract(encoder, "image", manifest, folder, batch_size=BATCH, workers=workers, progress=False)

    ways: dict[str, Callable[[], object]] = {
        "forward": forward,
        "extract": extraction,
        "decode": lambda: [encoder.preprocess("image", open_image(path)) for path in paths],
    }
    encoder.forward("image", prepared[:BATCH])
    times: dict[str, list[Seconds]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            times[name].append(seconds(work))
    return times


def percent_of_forward(times: dict[str, list[Seconds]], way: str, kind: str) -> float:
    """The median over the rounds, each against its neighbour in time."""
    pairs = zip(times[way], times["forward"], strict=True)
    return statistics.median(100 * getattr(one, kind) / getattr(other, kind) for one, other in pairs)


def report(times: dict[str, list[Seconds]], threads: int, workers: int, count: int) -> None:
    forward, extraction = (count / statistics.median(one.wall for one in times[way]) for way in ("forward", "extract"))
    wall, processor = (percent_of_forward(times, "extract", kind) - 100 for kind in ("wall", "processor"))
    decoding = percent_of_forward(times, "decode", "processor")
    print(
        f"{threads:<7} {workers:<7} {forward:<12.1f} {extraction:<13.1f} {wall:<+10.1f} {processor:<+12.1f} "
        f"{decoding:.1f}  (per cent of forward)",
        flush=True,
    )


def explain(times: dict[str, list[Seconds]], threads: int) -> None:
    """Says why the goal isn't reached, where it isn't."""
    wall, processor = (percent_of_forward(times, "extract", kind) - 100 for kind in ("wall", "processor"))
    if wall <= GOAL:
        return
    decoding = percent_of_forward(times, "decode", "processor")
    if processor <= GOAL:
        print(f"  {threads} threads: the work is within {GOAL}%, the rest is waiting for other programs.")
    else:
        print(
            f"  {threads} threads: no core was free beside the forward pass; of the {processor:.1f}% of work "
            f"decoding is {decoding:.1f}%, storing (float16, checksum, writing) and overhead the rest."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--size", type=int, default=224, help="side of the pictures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does
    encoder = load_encoder(options.encoder)
    with tempfile.TemporaryDirectory() as folder:
        manifest = draw_pictures(Path(folder), options.pictures, options.size)
        load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        print(f"{options.encoder}, {options.pictures} pictures, {options.rounds} rounds, {load}")
        print("                forward      extract       over forward by         decoding alone")
        print("threads workers images/s     images/s      wall       processor    processor")
        for threads in options.threads:
            torch.set_num_threads(threads)
            for workers in options.workers:
                times = measure(encoder, manifest, workers, options.rounds)
                report(times, threads, workers, options.pictures)
                explain(times, threads)


if __name__ == "__main__":
    main()
