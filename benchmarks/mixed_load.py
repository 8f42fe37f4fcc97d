"""Minutes of mixed load on the service while its index changes: does its memory stay flat, and does it always answer?

    python benchmarks/mixed_load.py                  # 10 minutes
    python benchmarks/mixed_load.py --minutes 3 --clients 2

The service runs in a process of its own over an index of small drawn pictures, with an encoder that takes no time, so
that what is loaded is the index and the service. Clients ask by text, by an uploaded picture, by likeness and with
conditions, and fetch thumbnails; meanwhile pictures are added and removed without pause, by this process, which
optimizes the index at every tenth change. Each half minute it prints both processes' resident memory.

Memory counts as flat when the service's grows by less than 1 MB a minute over the last two thirds: by the median of the
slopes between all pairs of samples, taken each second, so that an allocator's steps up and down don't decide. An index
that holds ever as many pictures has no reason to grow.
"""

import argparse
import io
import itertools
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import torch
from measuring import resident
from PIL import Image
from torch.nn.functional import normalize

from modalloy.data import read_collection
from modalloy.encoders import Encoded, Encoder, Fingerprint
from modalloy.index import Source, create_index, open_index
from modalloy.index.encoder_spec import head_of
from modalloy.index.sync import SyncConfig, sync

DIM, CHANGED, EVERY, FLAT = 64, 16, 10, 1.0


class Drawn(Encoder):
    """Embeds by numbers drawn from a picture's or a text's content."""

    modalities = ("image", "text")
    name = spec = "drawn"

    def fingerprint(self, modality):
        return Fingerprint(f"drawn {modality}", "1", "0" * 64, "0" * 64)

    def dim(self, modality):
        return DIM

    def width(self, modality):
        return DIM

    def preprocess(self, modality, item):
        content = item.tobytes() if modality == "image" else item.encode()
        return torch.from_numpy(np.random.default_rng(list(content[:32])).standard_normal(DIM, np.float32))

    def forward(self, modality, prepared):
        vectors = normalize(torch.stack(list(prepared)), dim=-1)
        return Encoded(vectors, vectors, torch.ones(len(vectors), dtype=torch.int64))


def draw(number: int, size: int = 64) -> Image.Image:
    """A picture of its own for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((size, size))


class Pictures:
    """A folder that always holds as many pictures, the oldest of which make room for new ones."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self._numbers, self.here = folder, itertools.count(), list[int]()
        folder.mkdir()
        self.add(count)

    def add(self, count: int) -> None:
        """Writes some, each with a caption."""
        for number in itertools.islice(self._numbers, count):
            draw(number).save(self.folder / f"{number}.png")
            (self.folder / f"{number}.txt").write_text(f"picture {number}")
            self.here.append(number)

    def remove(self, count: int) -> None:
        """Removes the oldest."""
        for number in self.here[:count]:
            for ending in ("png", "txt"):
                (self.folder / f"{number}.{ending}").unlink()
        del self.here[:count]


def change(location: Path, pictures: Pictures, until: float, done: Counter) -> None:
    """Brings the index to what the folder holds, and changes that, until the time is over."""
    index, encoder = open_index(location), Drawn()
    source = Source("", str(pictures.folder), None, str(pictures.folder))
    while True:
        sync(
            index,
            encoder,
            source,
            lambda known: read_collection(pictures.folder, known_files=known),
            SyncConfig(workers=1),
        )
        done["changes"] += 1
        if done["changes"] % EVERY == 0:
            index.optimize()
        if time.monotonic() > until:
            break
        pictures.add(CHANGED)
        pictures.remove(CHANGED)


def ask(url: str, seed: int, until: float, took: list[float], done: Counter) -> None:
    """Asks all kinds of questions until the time is over."""
    drawn, known = random.Random(seed), ""
    with httpx.Client(base_url=url, timeout=60) as client:
        while time.monotonic() < until:
            kind = drawn.choice(["text", "text", "upload", "like", "where", "thumbnail"])
            started = time.monotonic()
            answer = request(client, kind if known else "text", drawn, known)
            took.append(1000 * (time.monotonic() - started))
            # What was found may be removed by the time that it is asked for.
            gone = answer.status_code in (404, 422) and kind in ("like", "thumbnail")
            done["gone" if gone else "answered" if answer.status_code == 200 else f"HTTP {answer.status_code}"] += 1
            if answer.status_code == 200 and kind != "thumbnail" and (hits := answer.json()["hits"]):
                known = drawn.choice(hits)["id"]


def request(client: httpx.Client, kind: str, drawn: random.Random, known: str) -> httpx.Response:
    """One of a kind."""
    number = drawn.randrange(10_000)
    if kind == "thumbnail":
        return client.get("/v1/thumbnail", params={"id": known})
    if kind == "upload":
        file = io.BytesIO()
        draw(number, 256).save(file, "PNG")
        query = '{"parts": [{"upload": 0}]}'
        return client.post("/v1/search", data={"query": query}, files={"pictures": ("a.png", file.getvalue())})
    part = {"like": known} if kind == "like" else {"text": f"picture {number}"}
    where = [{"field": "path", "comparison": "contains", "value": str(number % 10)}] if kind == "where" else []
    return client.post("/v1/search", json={"parts": [part], "where": where})


def serve(location: str, port: int) -> None:
    """The service, until it is terminated."""
    import uvicorn

    from modalloy.search import Searcher
    from modalloy.serve.app import create_app

    app = create_app(Searcher(open_index(location), Drawn()))
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def slope(samples: list[tuple[float, float]]) -> float:
    """The median of the slopes between all pairs of samples, per minute."""
    pairs = itertools.combinations(samples, 2)
    return 60 * statistics.median((after - before) / (late - early) for (early, before), (late, after) in pairs)


def watch(process: subprocess.Popen, until: float, took: list[float], done: Counter) -> list[tuple[float, float]]:
    """Prints how it goes; gives the service's memory in MB by second."""
    samples, started, asked = list[tuple[float, float]](), time.monotonic(), 0
    while time.monotonic() < until and process.poll() is None:
        time.sleep(1)
        memory = resident("VmRSS", process.pid) / 1024
        samples.append((time.monotonic() - started, memory))
        if len(samples) % 30 == 0:
            latest = sorted(took[asked:]) or [0.0]
            asked = len(took)
            print(
                f"{samples[-1][0]:5.0f} s  service {memory:6.1f} MB, writer {resident('VmRSS') / 1024:6.1f} MB  "
                f"{asked:6} questions, {done['changes']:4} changes, p50 {statistics.median(latest):.1f} ms, "
                f"p99 {latest[int(0.99 * len(latest))]:.1f} ms",
                flush=True,
            )
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--serve", nargs=2, metavar=("INDEX", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.serve:
        serve(options.serve[0], int(options.serve[1]))
        return 0
    folder = Path(tempfile.mkdtemp())
    try:
        return run(folder, options)
    finally:
        shutil.rmtree(folder)


def run(folder: Path, options: argparse.Namespace) -> int:
    """All of it; the exit status."""
    pictures, done, took = Pictures(folder / "pictures", options.pictures), Counter(), list[float]()
    create_index(folder / "index", head_of(Drawn()))
    change(folder / "index", pictures, time.monotonic(), Counter())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, "--serve", str(folder / "index"), str(port)])
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, process)
        until = time.monotonic() + 60 * options.minutes
        work = [threading.Thread(target=ask, args=(url, seed, until, took, done)) for seed in range(options.clients)]
        work.append(threading.Thread(target=change, args=(folder / "index", pictures, until, done)))
        for thread in work:
            thread.start()
        samples = watch(process, until, took, done)
        for thread in work:
            thread.join()
    finally:
        process.terminate()
        process.wait()
    growth = slope(samples[len(samples) // 3 :])
    bad = {kind: count for kind, count in done.items() if kind.startswith("HTTP")}
    took.sort()
    print(f"{len(took)} questions, p50 {statistics.median(took):.1f} ms, p99 {took[int(0.99 * len(took))]:.1f} ms")
    print(f"{done['gone']} asked for what had just been removed; errors: {bad or 'none'}; {done['changes']} changes")
    print(f"service: {growth:+.2f} MB a minute over the last two thirds: {'flat' if growth < FLAT else 'GROWS'}")
    return int(growth >= FLAT or bool(bad))


def wait_for(url: str, process: subprocess.Popen) -> None:
    """Until the service is ready."""
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit("the service didn't start")


if __name__ == "__main__":
    sys.exit(main())
