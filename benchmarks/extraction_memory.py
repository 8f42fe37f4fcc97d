"""Memory that a collection and its extraction take, at 10^4, 10^5 and 10^6 items.

    python benchmarks/extraction_memory.py

The manifests are simulated and the encoder is a stand-in, so that only modalloy's own bookkeeping is measured:
each row of the table is a process of its own, whose resident memory is read from the system. "extraction"
is what the peak rises above the finished manifest, its few batches and shards included. The last lines give the
growth per item between the two largest sizes, which is what a still larger collection will cost.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from modalloy.data.manifest import Item, Manifest
from modalloy.encoders.base import Encoded, Encoder, Fingerprint, Modality
from modalloy.features import extract
from modalloy.features.sources import Captions, Images, Source
from modalloy.files import sha256_of_text

KINDS = {"images": 0, "captions": 5}
DIM = 8


class StandIn(Encoder):
    """One token an item, and next to no work."""

    name, spec = "stand-in", "stand-in"
    modalities: tuple[Modality, ...] = ("image", "text")

    def fingerprint(self, modality: Modality) -> Fingerprint:
        return Fingerprint(modality, "1", "0" * 64, "0" * 64)

    def dim(self, modality: Modality) -> int:
        return DIM

    def width(self, modality: Modality) -> int:
        return DIM

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
        return torch.ones(DIM)

    def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
        vectors = torch.stack(list(prepared)) / DIM**0.5
        return Encoded(vectors, vectors, torch.ones(len(prepared), dtype=torch.long))


class Blank(Images):
    """Pictures that are nowhere."""

    def load(self, row: int) -> Image.Image:
        return Image.new("RGB", (1, 1))


def simulated(items: int, captions: int) -> Manifest:
    """A manifest like that of a real collection, whose texts are all different objects."""
    return Manifest(
        Path("/nowhere"),
        tuple(
            Item(
                f"picture-{number:09d}",
                f"images/{number // 1000:06d}/picture-{number:09d}.jpg",
                sha256_of_text(str(number)),
                "train",
                tuple(f"{kind} of a street with {number} people and a dog" for kind in range(captions)),
            )
            for number in range(items)
        ),
    )


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def measure(kind: str, rows: int) -> dict[str, float]:
    """In this process: the memory of a manifest with `rows` pictures or captions, and what extraction adds."""
    captions = KINDS[kind]
    torch.ones(1).sum()
    empty = resident()
    manifest = simulated(rows // max(1, captions), captions)
    whole = resident()
    start = time.perf_counter()
    source: Source = Blank(manifest) if captions == 0 else Captions(manifest)
    modality: Modality = "image" if captions == 0 else "text"
    with tempfile.TemporaryDirectory() as folder:
        extract(StandIn(), modality, manifest, folder, source=source, workers=1, batch_size=256, progress=False)
        seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"manifest": whole - empty, "extraction": peak - whole, "peak": peak, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--one", nargs=2, metavar=("KIND", "ROWS"), help="measure one case in this process, as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    print("rows                 manifest MB  bytes/row   extraction MB  bytes/row   peak MB  seconds")
    for kind in KINDS:
        found = {}
        for rows in options.sizes:
            command = [sys.executable, __file__, "--one", kind, str(rows)]
            answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found[rows] = answer
            print(
                f"{rows:>9,} {kind:<10} {answer['manifest'] / 1e6:<12.1f} {answer['manifest'] / rows:<11.0f} "
                f"{answer['extraction'] / 1e6:<14.1f} {answer['extraction'] / rows:<11.0f} "
                f"{answer['peak'] / 1e6:<8.0f} {answer['seconds']:.1f}",
                flush=True,
            )
        *_, small, large = [None, *sorted(found)]
        if small is not None:
            for key in ("manifest", "extraction"):
                growth = (found[large][key] - found[small][key]) / (large - small)
                print(f"  each further row takes {growth:.0f} bytes of {key}")


if __name__ == "__main__":
    main()
