"""Batches a second from feature stores, against what a training step needs.

    python benchmarks/loading.py

Real stores in a temporary folder: 577 + 36 image tokens and 30 + 30 text tokens of width 768 in float16, gathered
in batches of 20 random pairs as a training does, padded and made float32, in the training's own process. Beside it
our step of training_step.py, which uses each batch. The files are in the page cache, as those of a training are
after its first epoch where memory suffices; a disk is not measured. Processor time of one thread, both in turn.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from measuring import clock_of, measure, ratio
from random_stores import random_set
from training_step import BATCH, IMAGE_TOKENS, SHAPES, TEXT_TOKENS, step_of

from modalloy.training.batches import PairRows
from modalloy.training.pair_features import PairFeatures

GOAL, CAPTIONS = 5.0, 5
SYSTEMS = ("ours float32", "ours bfloat16")


def batches(pairs: PairFeatures, images: int) -> Iterator[PairRows]:
    """Rows of random pairs, without end."""
    generator = torch.Generator().manual_seed(0)
    while True:
        rows = torch.randperm(images, generator=generator)[:BATCH]
        yield PairRows(rows, CAPTIONS * rows + torch.randint(CAPTIONS, (BATCH,), generator=generator))


def main() -> None:
    """Print batches a second, and the ratio to the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=128, help="in the stores, 5 captions each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10, help="batches loaded a round")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        image = random_set(Path(folder), "image", options.images, IMAGE_TOKENS, SHAPES)
        text = random_set(Path(folder), "text", CAPTIONS * options.images, TEXT_TOKENS, SHAPES)
        pairs = PairFeatures(image, text, torch.arange(options.images))
        rows = batches(pairs, options.images)
        steps = {system: step_of(system, "cpu") for system in SYSTEMS}
        steps["loading"] = lambda: [pairs[next(rows)] for _ in range(options.repeats)]
        times = measure(steps, options.rounds, clock_of("cpu"))
    times["loading"] = [each / options.repeats for each in times["loading"]]
    result = {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "ratios": {system: ratio(times[system], times["loading"]) for system in SYSTEMS},
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{1 / result['seconds']['loading']:.0f} batches of {BATCH} pairs a second")
    for system, value in result["ratios"].items():
        print(f"  {value:.0f}x the need of a step, {system}: {result['seconds'][system]:.2f} s (goal {GOAL}x)")


if __name__ == "__main__":
    main()
