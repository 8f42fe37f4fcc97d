"""Searching 100,000 vectors: the index beside FAISS's IVF-SQ8 and HNSW, and beside exact search.

    python benchmarks/search.py                # the index in a temporary folder
    python benchmarks/search.py --dim 1024 --rows 100000
    python benchmarks/search.py --encoder alloy:runs/demo --collection dataset_flickr8k.json --images images

The vectors are drawn around 2,000 centres, with noise as large as the centres, as embeddings of photographs lie;
queries are further away, as those of texts are. With `--collection` its captions are the gallery, and its pictures ask,
which is harder for a graph: these queries lie apart from all that it holds. Each query goes alone, on all cores,
through the whole of `Snapshot.search`, and the systems take turns, so that what else the machine does hits all of them:
the index whose vectors a service has read ahead, the same from the disk by its graph, and FAISS's.
Recall is against exact search in float64; of equal scores any will do. Building and adding are timed once; so is the
encoding of a query, where `--encoder` names one.
FAISS holds its vectors in memory; the index has them on a disk as well, with ids, metadata and thumbnails.
Needs faiss-cpu.
"""

import os

# Before anything loads OpenMP: else FAISS's idle threads keep the cores busy while the next system is timed.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import torch

from modalloy.encoders import Fingerprint, load_encoder
from modalloy.encoders.base import MODALITIES
from modalloy.index import Head, Snapshot, create_index, open_index
from modalloy.index.schema import rows_schema
from modalloy.workflow.collections import open_with_rejects

GOAL_MS, GOAL_RECALL, K = 6.0, 0.99, 10
CENTRES, COMMIT = 2_000, 10_000
OURS = "modalloy, read ahead"
THUMBNAIL = bytes(range(256)) * 40


def drawn(rows: int, dim: int, noise: float, centres: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Unit vectors around the centres."""
    vectors = centres[random.integers(0, len(centres), rows)] + noise * random.standard_normal((rows, dim), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def embedded(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """The captions of a collection and its first pictures."""
    collection, _ = open_with_rejects(options.collection, options.images)
    encoder = load_encoder(options.encoder)
    captions = collection.captions[: options.rows]
    pictures = [collection.absolute(item) for item in list(collection)[: options.queries]]
    texts = [encoder.encode_texts(captions[first : first + 64]).embedding for first in range(0, len(captions), 64)]
    images = [encoder.encode_images(pictures[first : first + 16]).embedding for first in range(0, len(pictures), 16)]
    return torch.cat(texts).float().numpy(), torch.cat(images).float().numpy()


def rows_of(vectors: np.ndarray, first: int) -> pa.Table:
    """Rows of pictures, all with the same thumbnail of 10 kB, which then takes nearly no room."""
    count, dim = vectors.shape
    schema = rows_schema(dim)
    ids = [f"{place:08d}.jpg" for place in range(first, first + count)]
    given = {
        "id": ids, "picture_id": ids, "path": ids, "modality": ["image"] * count, "source": [""] * count,
        "sha256": [f"{place:064x}" for place in range(first, first + count)], "bytes": [100_000] * count,
        "modified_ns": [1] * count, "split": ["unused"] * count, "captions": [["a picture"]] * count,
        "width": [640] * count, "height": [480] * count, "thumbnail": [THUMBNAIL] * count,
        "image_vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim),
    }  # fmt: skip
    return pa.table([given.get(field.name, pa.nulls(count, field.type)) for field in schema], schema=schema)


def fill(folder: Path, vectors: np.ndarray) -> tuple[float, float, float]:
    """Makes an index; the seconds to write and to index it, and those of a commit of 256 more, which is taken back."""
    made_by = Fingerprint("drawn", "1", "0" * 64, "0" * 64)
    index = create_index(folder, Head("drawn", dict.fromkeys(MODALITIES, made_by), vectors.shape[1]))
    start = time.perf_counter()
    for first in range(0, len(vectors), COMMIT):
        index.commit(rows_of(vectors[first : first + COMMIT], first))
    written = time.perf_counter()
    index.optimize()
    optimized = time.perf_counter()
    more = rows_of(vectors[:256], len(vectors))
    began = time.perf_counter()
    index.commit(more)
    added = time.perf_counter() - began
    index.commit(removed=more["id"].to_pylist())
    return written - start, optimized - written, added


def read_ahead(folder: Path, query: np.ndarray) -> tuple[Snapshot, float]:
    """The index as a service holds it before its first question, and the seconds that this takes."""
    snapshot, start = open_index(folder).snapshot(), time.perf_counter()
    snapshot.read_ahead()
    snapshot.search("image", torch.from_numpy(query)[None], K)
    return snapshot, time.perf_counter() - start


def faiss_systems(vectors: np.ndarray) -> dict[str, tuple[Callable[[np.ndarray], list[int]], float]]:
    """FAISS's indexes, which give row numbers, and the seconds to build each."""
    dim, systems = vectors.shape[1], {}
    lists = int(4 * len(vectors) ** 0.5)
    for name, factory in (("FAISS IVF-SQ8", f"IVF{lists},SQ8"), ("FAISS HNSW32", "HNSW32,Flat")):
        start = time.perf_counter()
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        if name.startswith("FAISS IVF"):
            index.train(vectors)
        else:
            index.hnsw.efConstruction = 100
        index.add(vectors)
        if name.startswith("FAISS IVF"):
            index.nprobe = 64
        else:
            index.hnsw.efSearch = 64
        systems[name] = (
            lambda query, index=index: index.search(query[None], K)[1][0].tolist(),
            time.perf_counter() - start,
        )
    return systems


def main() -> None:
    """Print times, recalls and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--encoder", help="also time how long it takes to encode a query")
    parser.add_argument("--collection", help="whose captions, embedded by the encoder, are searched by its pictures")
    parser.add_argument("--images", help="the collection's images, where it doesn't say")
    parser.add_argument("--without-faiss", action="store_true", help="time the index alone")
    options = parser.parse_args()
    if options.collection and not options.encoder:
        parser.error("--collection needs an --encoder")
    random = np.random.default_rng(0)
    centres = random.standard_normal((CENTRES, options.dim), np.float32)
    if options.collection:
        vectors, queries = embedded(options)
    else:
        vectors = drawn(options.rows, options.dim, 0.9, centres, random)
        queries = drawn(options.queries, options.dim, 1.2, centres, random)
    (rows, dim), told = vectors.shape, []
    # The least score of the best.
    least = [np.partition(vectors @ query.astype(np.float64), -K)[-K] - 1e-6 for query in queries]

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "index"
        written, optimized, added = fill(folder, vectors)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        snapshot, ahead = read_ahead(folder, queries[0])

        def search_of(snapshot: Snapshot, exact: bool = False) -> Callable[[np.ndarray], list[int]]:
            def search(query: np.ndarray) -> list[int]:
                found = snapshot.search("image", torch.from_numpy(query)[None], K, exact=exact)[0]
                return [int(id.removesuffix(".jpg")) for id in found.ids]

            return search

        built = written + optimized
        systems: dict[str, tuple[Callable[[np.ndarray], list[int]], float]] = {
            OURS: (search_of(snapshot), built),
            "modalloy, from disk": (search_of(open_index(folder).snapshot()), built),
            **({} if options.without_faiss else faiss_systems(vectors)),
        }
        times: dict[str, list[float]] = {name: [] for name in systems}
        hits = dict.fromkeys(systems, 0)
        for number, (query, enough) in enumerate(zip(queries, least, strict=True)):
            for name, (search, _) in systems.items():
                start = time.perf_counter()
                found = search(query)
                # The first ones load what the others use.
                if number >= 10:
                    times[name].append(1000 * (time.perf_counter() - start))
                if number >= 10 and name == OURS:
                    start = time.perf_counter()
                    snapshot.rows([f"{place:08d}.jpg" for place in found], ["captions", "width", "height"])
                    told.append(1000 * (time.perf_counter() - start))
                hits[name] += sum(vectors[found] @ query.astype(np.float64) >= enough)
        start = time.perf_counter()
        exact = search_of(snapshot, exact=True)(queries[0])
        exact_ms = 1000 * (time.perf_counter() - start)
    if min(vectors[exact] @ queries[0].astype(np.float64)) < least[0]:
        raise SystemExit("exact search differs from numpy's")

    print(f"{rows:,} vectors of {dim} numbers, {torch.get_num_threads()} threads, one query at a time\n")
    print(f"{'':20}  {'p50 ms':>7}  {'p99 ms':>7}  {'recall@10':>9}  {'build s':>8}")
    for name, (_, built) in systems.items():
        ordered = sorted(times[name])
        p99 = ordered[int(0.99 * len(ordered))]
        recall = hits[name] / (K * len(queries))
        print(f"{name:20}  {statistics.median(ordered):7.2f}  {p99:7.2f}  {recall:9.4f}  {built:8.1f}")
    median, recall = statistics.median(times[OURS]), hits[OURS] / (K * len(queries))
    for name in systems:
        if name != OURS:
            print(f"{OURS} / {name}: {median / statistics.median(times[name]):.2f} of its time")
    print(f"what is told of the {K} found besides: {statistics.median(told):.2f} ms")
    print(f"exact search of all, read ahead: {exact_ms:.0f} ms")
    print(f"reading ahead: {ahead:.1f} s")
    print(f"writing {rows / written:,.0f} rows/s, then {optimized:.1f} s for compaction and graph")
    print(f"a commit of 256 more: {1000 * added:.0f} ms")
    print(f"on disk {size / rows / 1000:.1f} kB a picture, besides its thumbnail")
    print(f"goal p50 < {GOAL_MS} ms: {'met' if median < GOAL_MS else 'missed'}")
    print(f"goal recall@10 >= {GOAL_RECALL}: {'met' if recall >= GOAL_RECALL else 'missed'}")
    if options.encoder:
        encoder = load_encoder(options.encoder)
        took = []
        for number in range(20):
            start = time.perf_counter()
            encoder.encode_texts([f"a red telephone number {number} on a desk"])
            took.append(1000 * (time.perf_counter() - start))
        print(f"encoding a query by {encoder.name}: median {statistics.median(took[3:]):.1f} ms")


if __name__ == "__main__":
    main()
