"""The published sizes of the benchmarks' parts, so that a cut or mixed-up file isn't taken for a benchmark.

Source: A. Karpathy, L. Fei-Fei, "Deep visual-semantic alignments for generating image descriptions" (2015).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from modalloy.data.build import SPLIT_ALIASES, Record
from modalloy.errors import DataError

KARPATHY_IMAGES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "flickr8k": {"train": (6000,), "val": (1000,), "test": (1000,)},
    "flickr30k": {"train": (29_000,), "val": (1014,), "test": (1000,)},
    # COCO's training images with `restval`, without it, and `restval` alone.
    "coco": {"train": (113_287, 82_783, 30_504), "val": (5000,), "test": (5000,)},
}
"""The number of images in each part, by benchmark; several where a part is in use in several forms."""


def check_benchmark(benchmark: str, records: Iterable[Record], where: str | Path, rename: str) -> dict[str, int]:
    """Checks the parts that there are against a benchmark's, and returns what its test part must hold.

    It is what the file lists that counts. Parts that are absent, and pictures that are missing from the training
    and validation parts, don't matter; figures on a test part without some of its pictures would.

    >>> records = [Record(str(row), f"{row}.jpg", "test", ("A cat.",)) for row in range(1000)]
    >>> check_benchmark("flickr30k", records, "flickr30k_test.json", "rename the file")
    {'test': 1000}

    Args:
        benchmark: a key of `KARPATHY_IMAGES`.
        records: the images listed.
        where: the file, for the message.
        rename: how to say that it is another split.

    Raises:
        DataError: a part has another number of images.
    """
    counts = Counter(SPLIT_ALIASES.get(record.split.strip().lower()) for record in records)
    expected = KARPATHY_IMAGES[benchmark]
    for split, sizes in expected.items():
        if counts[split] and counts[split] not in sizes:
            others = f" (or {', '.join(f'{size:,}' for size in sizes[1:])})" if sizes[1:] else ""
            raise DataError(
                f"{where}: the Karpathy {split} part of {benchmark} has {sizes[0]:,} images{others}, "
                f"this one has {counts[split]:,}; use the published file or, if it is another split, {rename}."
            )
    return {"test": counts["test"]} if counts["test"] else {}
