"""Hierarchical inference against full cross attention on all pairs: 1,000 captions over 5,000 images.

    python benchmarks/hierarchical.py [--scale 0.1]

Random tokens in real stores, in HACAN's sizes: 49 regions of either level, captions of 8 to 32 words, 768 wide, mapped
to 768 once, into stores of their own; that is timed apart and counted nowhere. All systems take float32; times are of
one thread's processor, medians over rounds in which all take turns. "full" scores all captions with a sample of the
images by all terms, by the package's kernels, and its time is scaled to all images; "caption loop" is HACAN's way, one
caption after the other (see local_similarity.py), scaled from a smaller sample. Shrunk, a gallery has a larger share of
candidates, and ratios are smaller. Random tokens tell nothing of recall: `modalloy evaluate hacan:RUN ... --stages
chosen` measures it on real features, at every depth.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from local_similarity import caption_loop
from measuring import Step, measure, ratio
from random_stores import random_store
from torch import Tensor

from modalloy.align import (
    AlignedEncoder,
    Backbone,
    GlobalHead,
    HeadConfig,
    LocalBranch,
    LocalConfig,
    LocalLevel,
    cross_layer_similarity,
)
from modalloy.features import FeatureStore, derive_tokens
from modalloy.memory import keep_freed_memory
from modalloy.search import HierarchicalSearch, HierarchyConfig, Member, Side, StoredTokens, TokenSource

GOAL, REGIONS, SHORTEST, LONGEST, BLOCK = 30.0, 49, 8, 32, 256
LEVELS, LOOPED = ("high", "mid"), (128, 64)


def random_stores(folder: Path, rows: dict[str, int], width: int) -> dict[str, dict[str, FeatureStore]]:
    """A backbone's tokens of both levels; captions are stored in the longest's length."""
    # Before the regions stands the picture's summary token, which isn't compared.
    lengths = {"image": 1 + REGIONS, "text": LONGEST}
    return {
        modality: {
            level: random_store(folder / f"{modality}-{level}", modality, number, lengths[modality], width, width)
            for level in LEVELS
        }
        for modality, number in rows.items()
    }


def aligned(stores: dict[str, dict[str, FeatureStore]], width: int) -> AlignedEncoder:
    """An encoder with a local branch, on the backbones of these stores."""
    high, mid = (
        {each: Backbone(found[level].spec, found[level].fingerprint, width) for each, found in stores.items()}
        for level in LEVELS
    )
    heads = {modality: GlobalHead(HeadConfig(width, (width,))) for modality in stores}
    local = LocalBranch(LocalConfig(*[width] * 4, dim=width))
    return AlignedEncoder(high, heads, local=local, mid=mid)


def side(folder: Path, modality: str, encoder: AlignedEncoder, stores: dict[str, FeatureStore]) -> Side:
    """Items whose mapped tokens are read from stores; captions in their own lengths."""
    rows = len(stores["high"])
    lengths = torch.full((rows,), 1 + REGIONS)
    if modality == "text":
        lengths = torch.randint(SHORTEST, LONGEST + 1, (rows,), generator=torch.Generator().manual_seed(1))

    def reader(level: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        mapped = LocalLevel(encoder, level)
        to = folder / f"{modality}-{level}-mapped"
        store = derive_tokens(stores[level], torch.arange(rows), mapped, to, partial(mapped.project, modality))

        def read(some: Tensor) -> tuple[Tensor, Tensor]:
            packed, stored = store.tokens(some)
            if modality == "image":
                return packed, stored
            kept = torch.arange(LONGEST) < lengths[some, None]
            return packed[kept.flatten()], lengths[some]

        return read

    tokens = StoredTokens(modality, {level: reader(level) for level in LEVELS}, torch.arange(rows))
    return Side(stores["high"].embeddings(), tokens)


@torch.no_grad()
def full_cross_attention(queries: TokenSource, images: TokenSource, sample: int) -> None:
    """Scores all queries with a sample of the images."""
    captions = queries.read(torch.arange(len(queries)), LEVELS)
    for block in torch.arange(len(images))[:sample].split(BLOCK):
        cross_layer_similarity(images.read(block, LEVELS), captions)


@torch.no_grad()
def looped(queries: TokenSource, images: TokenSource, sizes: tuple[int, int]) -> None:
    """Scores some images and captions in HACAN's way."""
    n_images, n_captions = sizes
    caption_loop(images.read(torch.arange(n_images), LEVELS), queries.read(torch.arange(n_captions), LEVELS))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    n_queries, n_items = (max(1, int(size * options.scale)) for size in (options.queries, options.items))
    sample, small = min(n_items, options.sample), (min(n_items, LOOPED[0]), min(n_queries, LOOPED[1]))
    with tempfile.TemporaryDirectory() as name:
        stores = random_stores(Path(name), {"image": n_items, "text": n_queries}, options.width)
        encoder = aligned(stores, options.width)
        start = time.process_time()
        images, captions = (side(Path(name), modality, encoder, found) for modality, found in stores.items())
        mapping = time.process_time() - start
        assert encoder.local is not None
        search = HierarchicalSearch(Member(images, captions, encoder.local.config))
        steps: dict[str, Step] = {
            "caption loop": partial(looped, captions.tokens, images.tokens, small),
            "full": partial(full_cross_attention, captions.tokens, images.tokens, sample),
        }
        for first, second in options.depths:
            steps[f"{first}:{second}, mapped store"] = partial(search, "text_to_image", HierarchyConfig(first, second))
        times = measure(steps, options.rounds, time.process_time, warm_up=False)
    scales = {"caption loop": n_items * n_queries / (small[0] * small[1]), "full": n_items / sample}
    times = {name: [scales.get(name, 1) * each for each in found] for name, found in times.items()}
    return {
        "queries": n_queries,
        "items": n_items,
        "mapping": mapping,
        "seconds": {name: statistics.median(each) for name, each in times.items()},
        "ratios": {
            name: {slow: ratio(times[slow], each) for slow in scales}
            for name, each in times.items()
            if name not in scales
        },
    }


def show(result: dict[str, Any]) -> None:
    print(f"{result['queries']} captions over {result['items']} images, one thread")
    print(f"  (to map all tokens into stores took {result['mapping']:.1f} s, once)")
    for name, seconds in result["seconds"].items():
        line = f"  {name:24} {seconds:8.1f} s"
        if name in result["ratios"]:
            loop, full = (result["ratios"][name][slow] for slow in ("caption loop", "full"))
            line += (
                f", {full:5.1f}x full (goal {GOAL:g}x: {'held' if full >= GOAL else 'missed'}), {loop:.0f}x the loop"
            )
        else:
            line += ", scaled from a sample"
        print(line)


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
    parser.add_argument("--rounds", type=int, default=3)
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
