"""Files that a disk or a network has damaged."""

from collections.abc import Iterator
from random import Random


def damaged_copies(whole: bytes, count: int = 100) -> Iterator[bytes]:
    """Copies with three bytes changed near the start, half of them cut short too."""
    random = Random(0)
    for _ in range(count):
        damaged = bytearray(whole[: random.randrange(20, len(whole))] if random.random() < 0.5 else whole)
        for _ in range(3):
            damaged[random.randrange(min(600, len(damaged)))] = random.randrange(256)
        yield bytes(damaged)
