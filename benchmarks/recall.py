"""Recall of 5,000 images x 25,000 captions: counting in blocks against sorting every row.

    python benchmarks/recall.py

Both sides start from the embeddings, so the matrix products are timed too. The reference is the way of the
original evaluations: the whole score matrix, then an argsort for each query and a look-up of its truth; with
torch's argsort, and with NumPy's, which AVX-512 makes faster where the processor has it. Counting can't be
faster than its product, so the ratio that a free count would reach is printed as well. Embeddings are random
but trained-looking: captions scatter around their image. Ranks of both sides are compared too.
On a busy machine processor time tells more than the clock, above all with one thread.
Memory is measured in fresh processes: what ranking adds to its peak, at two sizes.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from modalloy.evaluation import EmbeddingScores, Ranks, metrics, rank_queries

CAPTIONS = 5
GOAL = 20  # times the argsort, by processor time
SHORTFALL = "missed; the argsort is itself vectorised, and the product, which both sides need, bounds the ratio"
Result = TypeVar("Result")


def embeddings(n_images: int, dim: int, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Unit-norm images and captions, each caption its image plus noise, in some shared directions."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, dim + 1).float().rsqrt()
    image = torch.randn(n_images, dim, generator=generator) * spectrum
    caption_image = torch.arange(n_images).repeat_interleave(CAPTIONS)
    text = image[caption_image] + noise * torch.randn(len(caption_image), dim, generator=generator) * spectrum
    return (
        torch.nn.functional.normalize(image, dim=1),
        torch.nn.functional.normalize(text, dim=1),
        caption_image,
    )


def argsort_ranks(image: Tensor, text: Tensor, library: str) -> Ranks:
    """The reference: argsort of each row of the whole matrix, then of each column."""
    scores = image @ text.T
    image_to_text, text_to_image = np.empty(len(image)), np.empty(len(text))
    columns = scores.T.contiguous()
    for query in range(len(image)):
        order = _descending(scores[query], library)
        own = range(CAPTIONS * query, CAPTIONS * (query + 1))
        image_to_text[query] = min(np.where(order == caption)[0][0] for caption in own) + 1
    for query in range(len(text)):
        order = _descending(columns[query], library)
        text_to_image[query] = np.where(order == query // CAPTIONS)[0][0] + 1
    return Ranks(torch.from_numpy(image_to_text), torch.from_numpy(text_to_image))


def _descending(row: Tensor, library: str) -> np.ndarray:
    if library == "torch":
        return torch.argsort(row, descending=True).numpy()
    return np.argsort(row.numpy())[::-1]


@dataclass(frozen=True)
class Time:
    """Seconds of a run."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:6.2f} s ({self.cpu:.2f} s of processor)"


def timed(function: Callable[[], Result], repeats: int) -> tuple[Time, Result]:
    """Least wall and processor time of some runs, and the last result."""
    walls, processors = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        result = function()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return Time(min(walls), min(processors)), result


def added_memory(n_images: int, dim: int) -> float:
    """Megabytes that ranking adds to the peak of a fresh process."""
    command = [sys.executable, __file__, "--memory", "--images", str(n_images), "--dim", str(dim)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def measure_memory(n_images: int, dim: int, noise: float) -> None:
    """Print what ranking adds to this process's resident memory at its peak."""
    torch.set_num_threads(1)
    image, text, caption_image = embeddings(n_images, dim, noise)
    rank_queries(EmbeddingScores(image[:32], text[:160]), caption_image[:160])
    Path("/proc/self/clear_refs").write_text("5")  # makes Linux forget the peak so far
    before = _status("VmRSS")
    rank_queries(EmbeddingScores(image, text), caption_image)
    print(json.dumps((_status("VmHWM") - before) / 1024))


def _status(field: str) -> int:
    """Kilobytes of a field of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def main() -> None:
    """Print times, ratios and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--dim", type=int, default=256, help="width of the embeddings")
    parser.add_argument("--noise", type=float, default=1.5, help="spread of captions around their image")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        measure_memory(options.images, options.dim, options.noise)
        return
    image, text, caption_image = embeddings(options.images, options.dim, options.noise)
    print(f"{len(image)} images x {len(text)} captions, {options.dim} dimensions")
    for threads in options.threads:
        torch.set_num_threads(threads)
        counted, ranks = timed(lambda: rank_queries(EmbeddingScores(image, text), caption_image), 5)
        print(f"{threads} thread(s)\n  counting {counted}")
        products = {}
        for precision in (torch.float32, torch.bfloat16):
            left, right = image.to(precision), text.to(precision)
            products[precision], _ = timed(lambda left=left, right=right: left @ right.T, 3)
            print(f"  the product alone in {precision} {products[precision]}")
        floor = min(product.cpu for product in products.values())
        for library in ("torch", "numpy"):
            sorting, reference = timed(lambda library=library: argsort_ranks(image, text, library), 1)
            differing = sum(
                int((getattr(ranks, side) != getattr(reference, side)).sum())
                for side in ("image_to_text", "text_to_image")
            )
            print(
                f"  {library} argsort of each row {sorting}\n"
                f"    goal {GOAL}x: {'reached' if sorting.cpu / counted.cpu >= GOAL else SHORTFALL}\n"
                f"    {sorting.wall / counted.wall:.1f}x by the clock, {sorting.cpu / counted.cpu:.1f}x by "
                f"processor time, {sorting.cpu / floor:.1f}x if counting were free; "
                f"{differing} of {len(image) + len(text)} queries rank otherwise by rounding"
            )
    result = metrics(ranks)
    print(f"R@1 {result.image_to_text.recall_1:.1f} and {result.text_to_image.recall_1:.1f}")
    for n_images in (options.images, 2 * options.images):
        pairs = n_images * n_images * CAPTIONS
        print(
            f"peak memory added by ranking {n_images} x {n_images * CAPTIONS}: "
            f"{added_memory(n_images, options.dim):.0f} MB (the matrix would be {pairs * 4 / 2**20:.0f} MB)"
        )


if __name__ == "__main__":
    main()
