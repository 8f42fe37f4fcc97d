"""Embedding a gallery from stored features against the original's way.

    python benchmarks/gallery_encoding.py

Ours is `Fuser.embed_rows` on the images and on the captions of real stores. The reference, by the description of
the original's evaluation, goes through (image, caption) pairs, so that an image is read and encoded once for each
of its 5 captions; features are in an .npz an item and encoder; nodes are joined item by item, and PyG's GATv2Conv
updates all of them, in batches of 20. Same weights, float32, one thread, processor time; both vectors are compared.
Files are in the page cache. Needs torch-geometric.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from full_graph import FullGraphTower
from measuring import clock_of, measure, ratio
from random_stores import random_set
from torch import Tensor
from training_step import BATCH, IMAGE_TOKENS, SHAPES, TEXT_TOKENS, TOWERS

from modalloy.features import pad
from modalloy.fusion import EncoderFeatures, FeatureSet, TowerFuser

GOAL, CAPTIONS = 10.0, 5


def write_items(features: FeatureSet, folder: Path) -> None:
    """One .npz an item and encoder."""
    for encoder, store in enumerate(features.stores):
        for row in range(len(store)):
            tokens, _ = store.tokens(torch.tensor([row]))
            path = folder / f"{features.modality}-{encoder}-{row}.npz"
            np.savez(path, feat=tokens.float().numpy(), proj_embed=store.embeddings(torch.tensor([row]))[0].numpy())


def read_items(modality: str, rows: list[int], folder: Path) -> list[EncoderFeatures]:
    """A batch, read item by item."""
    batch = []
    for encoder in range(len(SHAPES)):
        files = [np.load(folder / f"{modality}-{encoder}-{row}.npz") for row in rows]
        tokens = [torch.from_numpy(file["feat"]) for file in files]
        padded, mask = pad(torch.cat(tokens), torch.tensor([len(each) for each in tokens]))
        batch.append(EncoderFeatures(torch.from_numpy(np.stack([file["proj_embed"] for file in files])), padded, mask))
    return batch


def pair_by_pair(fuser: TowerFuser, images: int, folder: Path) -> Callable[[], tuple[Tensor, Tensor]]:
    """The reference; gives the vectors of the images and of the captions."""
    towers = {name: FullGraphTower(tower) for name, tower in fuser.towers.items()}

    @torch.no_grad()
    def encode() -> tuple[Tensor, Tensor]:
        image, text = [], []
        for start in range(0, CAPTIONS * images, BATCH):
            captions = list(range(start, min(start + BATCH, CAPTIONS * images)))
            image.append(towers["image"](read_items("image", [row // CAPTIONS for row in captions], folder)))
            text.append(towers["text"](read_items("text", captions, folder)))
        return torch.cat(image)[::CAPTIONS], torch.cat(text)

    return encode


def main() -> None:
    """Print times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=16, help="5 captions each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fuser = TowerFuser(TOWERS, SHAPES).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = random_set(folder, "image", options.images, IMAGE_TOKENS, SHAPES)
        text = random_set(folder, "text", CAPTIONS * options.images, TEXT_TOKENS, SHAPES)
        for features in (image, text):
            write_items(features, folder)
        reference = pair_by_pair(fuser, options.images, folder)

        def ours() -> tuple[Tensor, Tensor]:
            return tuple(fuser.embed_rows(each, torch.arange(len(each))) for each in (image, text))

        steps, results = {"pair by pair": reference, "ours": ours}, {}
        recorded = {key: lambda key=key, step=step: results.update({key: step()}) for key, step in steps.items()}
        times = measure(recorded, options.rounds, clock_of("cpu"))
    difference = max((a - b).abs().max().item() for a, b in zip(results["ours"], results["pair by pair"], strict=True))
    torch.testing.assert_close(difference, 0.0, atol=1e-4, rtol=0)
    seconds = {key: statistics.median(values) for key, values in times.items()}
    result = {"difference": difference, "seconds": seconds, "ratio": ratio(times["pair by pair"], times["ours"])}
    if options.json:
        print(json.dumps(result))
        return
    print(f"same vectors: largest difference {difference:.1e}")
    for key, value in seconds.items():
        print(f"  {key:13} {value:.2f} s for {options.images} images and {CAPTIONS * options.images} captions")
    print(f"  {result['ratio']:.1f}x (goal {GOAL}x)")


if __name__ == "__main__":
    main()
