"""Small collections in the folder layout of HADA's authors: ALBEF's files and LightningDOT's as they write them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SPLITS = {"train": 12, "val": 4, "test": 5}
WORDS = ("red", "small", "old", "wet", "tall", "loud")
MAX_TOKENS = 9


def write_layout(root: Path, splits: Mapping[str, int] = SPLITS, captions: int = 5, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    first = 1000
    for split, count in splits.items():
        listed = {
            str(first + number): [f"{WORDS[k % 6]} thing {first + number} seen {k}" for k in range(captions)]
            for number in range(count)
        }
        first += count
        path = root / "JSON" / f"{split}_matching_image_preprocessed_cap.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(listed))
        for id, texts in listed.items():
            write_albef(root, id, texts, random, augmented=split == "train")
            write_dot(root, id, texts, random)
    return root


def write_albef(root: Path, id: str, texts: list[str], random: np.random.Generator, augmented: bool) -> None:
    names = [("ALBEF_Output", id)] + [("ALBEF_AUG_Output", f"{id}_{copy}") for copy in range(3) if augmented]
    for output, name in names:
        save(
            root / output / "flickr30k" / "images" / f"{name}.npz",
            feat=normal(random, 7, 6),
            proj_embed=unit(normal(random, 4)),
        )
    lengths = random.integers(3, MAX_TOKENS + 1, len(texts))
    arrays = {
        "feat": normal(random, len(texts), MAX_TOKENS, 6),
        "proj_embed": unit(normal(random, len(texts), 4)),
        "att": (np.arange(MAX_TOKENS) < lengths[:, None]).astype(np.int64),
        "caption": np.array(texts),
    }
    if len(texts) == 1:
        arrays = {name: array[0] for name, array in arrays.items()}
    save(root / "ALBEF_Output" / "flickr30k" / "texts" / f"{id}.npz", **arrays)


def write_dot(root: Path, id: str, texts: list[str], random: np.random.Generator) -> None:
    regions = int(random.integers(10, 15))
    folder = root / "DOT_Output" / "flickr30k"
    save(folder / "images" / f"{id}.npz", feat=normal(random, 1 + regions, 8), proj_embed=3 * normal(random, 8))
    # Every third image has captions of one length, which NumPy then writes as plain arrays.
    lengths = np.full(len(texts), 6) if int(id) % 3 == 0 else 4 + random.permutation(len(texts)) % 4
    save(
        folder / "texts" / f"{id}.npz",
        feat=maybe_ragged([normal(random, length, 8) for length in lengths]),
        proj_embed=3 * normal(random, len(texts), 8),
        att=maybe_ragged([np.ones(length, dtype=np.int64) for length in lengths]),
    )


def save(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def maybe_ragged(pieces: list[np.ndarray]) -> np.ndarray:
    """As the NumPy of the authors' time made an array of a list."""
    if len({piece.shape for piece in pieces}) == 1:
        return np.array(pieces)
    array = np.empty(len(pieces), dtype=object)
    array[:] = pieces
    return array
