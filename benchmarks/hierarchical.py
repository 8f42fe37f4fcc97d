"""Hierarchical inference against full cross attention on all pairs: 1,000 captions over 5,000 images.

    python benchmarks/hierarchical.py [--scale 0.1]

Random tokens in real stores, in HACAN's sizes: 49 regions of either level, captions of 8 to 32 words, 768 wide, mapped
to 768. Both systems read the stores, and take the package's kernels in float32; times are of one thread's processor.
The reference scores all captions with a sample of the images, by all terms, and its time is scaled to all images.
"held" keeps the images' mapped tokens in memory, as a gallery that answers many queries would; to make them is timed
apart, and counted in neither. Shrunk, a gallery has a larger share of candidates, and ratios are smaller. Random tokens
tell nothing of recall: `modalloy evaluate hacan:RUN ... --stages chosen` measures it on real features, at every depth.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from random_stores import random_store
from torch import Tensor

from modalloy.align import LocalBranch, LocalConfig, cross_layer_similarity
from modalloy.memory import keep_freed_memory
from modalloy.search import HierarchicalSearch, HierarchyConfig, Member, Side, StoredTokens, TokenSource

GOAL, REGIONS, SHORTEST, LONGEST, BLOCK = 30.0, 49, 8, 32, 256
LEVELS = ("high", "mid")


def stored_side(folder: Path, modality: str, rows: int, width: int, branch: LocalBranch) -> Side:
    """Items of both levels; captions are stored in the longest's length, and read in their own."""
    # Before the regions stands the picture's summary token, which isn't compared.
    length = 1 + REGIONS if modality == "image" else LONGEST
    stores = {
        level: random_store(folder / f"{modality}-{level}", modality, rows, length, width, width) for level in LEVELS
    }
    lengths = torch.full((rows,), length)
    if modality == "text":
        lengths = torch.randint(SHORTEST, LONGEST + 1, (rows,), generator=torch.Generator().manual_seed(1))

    def reader(level: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        def read(some: Tensor) -> tuple[Tensor, Tensor]:
            packed, _ = stores[level].tokens(some)
            kept = torch.arange(length) < lengths[some, None]
            return packed[kept.flatten()], lengths[some]

        return read

    tokens = StoredTokens(branch, modality, {level: reader(level) for level in stores}, torch.arange(rows))
    return Side(stores["high"].embeddings(), tokens)


@torch.no_grad()
def full_cross_attention(queries: TokenSource, images: TokenSource, sample: int) -> float:
    """Seconds to score all queries with all images, of which a sample is scored."""
    start = time.process_time()
    captions = queries.read(torch.arange(len(queries)), LEVELS)
    read = time.process_time()
    for block in torch.arange(len(images))[:sample].split(BLOCK):
        cross_layer_similarity(images.read(block, LEVELS), captions)
    return read - start + (time.process_time() - read) * len(images) / sample


def hierarchical(search: HierarchicalSearch, config: HierarchyConfig) -> float:
    start = time.process_time()
    search("text_to_image", config)
    return time.process_time() - start


def compare(options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    n_queries, n_items = (max(1, int(size * options.scale)) for size in (options.queries, options.items))
    sample = min(n_items, options.sample)
    branch = LocalBranch(LocalConfig(*[options.width] * 4, dim=options.width))
    result: dict[str, Any] = {"queries": n_queries, "items": n_items, "sample": sample, "settings": []}
    with tempfile.TemporaryDirectory() as name:
        images = stored_side(Path(name), "image", n_items, options.width, branch)
        captions = stored_side(Path(name), "text", n_queries, options.width, branch)
        start = time.process_time()
        held = Side(images.vectors, images.tokens.held())
        result["holding"] = time.process_time() - start
        sides = {"stored": images, "held": held}
        result["full"] = {
            kind: full_cross_attention(captions.tokens, side.tokens, sample) for kind, side in sides.items()
        }
        for first, second in options.depths:
            config = HierarchyConfig(first, second)
            seconds = {
                kind: hierarchical(HierarchicalSearch(Member(side, captions, branch.config)), config)
                for kind, side in sides.items()
            }
            ratios = {kind: result["full"][kind] / each for kind, each in seconds.items()}
            result["settings"].append({"config": asdict(config), "seconds": seconds, "ratios": ratios})
    return result


def show(result: dict[str, Any]) -> None:
    print(f"{result['queries']} captions over {result['items']} images, one thread")
    for kind, seconds in result["full"].items():
        scaled = f"scaled from {result['sample']} images"
        print(f"  full cross attention, images' tokens {kind:6} {seconds:8.1f} s ({scaled})")
    print(f"  (to hold the images' mapped tokens took {result['holding']:.1f} s, once)")
    for setting in result["settings"]:
        depth = f"{setting['config']['focal_candidates']} then {setting['config']['cross_candidates']} candidates"
        for kind, seconds in setting["seconds"].items():
            ratio = setting["ratios"][kind]
            held = "held" if ratio >= GOAL else "missed"
            print(f"  {depth}, tokens {kind:6} {seconds:8.1f} s, {ratio:5.1f}x (goal {GOAL:g}x: {held})")


def depth(text: str) -> tuple[int, int]:
    first, second = map(int, text.split(":"))
    return first, second


def main() -> None:
    """Print times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--scale", type=float, default=1.0, help="shrinks queries and items")
    parser.add_argument("--sample", type=int, default=256, help="images that full cross attention scores")
    parser.add_argument("--depths", type=depth, nargs="+", default=[(50, 20), (100, 20)], help="as 100:20")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command line does; for both
    result = compare(options)
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
