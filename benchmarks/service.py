"""What a search costs through the service, over the same search called directly.

    python benchmarks/service.py

A small drawn index, an encoder that costs next to nothing, one client on one connection that is kept open. Direct calls
and requests take turns, so that what else the machine does hits both; the client's own work counts as the service's.
"""

import argparse
import hashlib
import http.client
import json
import logging
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
import uvicorn
from measuring import measure
from search import drawn, rows_of

from modalloy.encoders import Encoded, Encoder, Fingerprint
from modalloy.index import Head, Source, create_index
from modalloy.search import Part, Query, Searcher
from modalloy.serve import ServeConfig, create_app
from modalloy.serve.server import uvicorn_settings

GOAL_MS, DIM, ROWS, K = 2.0, 64, 2_000, 20


class Cheap(Encoder):
    """Turns a text into a drawn vector."""

    name, spec, modalities = "cheap", "cheap", ("text",)

    def fingerprint(self, modality: str) -> Fingerprint:
        return Fingerprint("cheap", "1", "0" * 64, "0" * 64)

    def dim(self, modality: str) -> int:
        return DIM

    width = dim

    def preprocess(self, modality: str, item: str) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(item.encode()).digest()[:4], "big")
        return torch.randn(DIM, generator=torch.Generator().manual_seed(seed))

    def forward(self, modality: str, prepared: list[torch.Tensor]) -> Encoded:
        vectors = torch.nn.functional.normalize(torch.stack(list(prepared)), dim=-1)
        return Encoded(vectors, vectors[:, None], torch.ones(len(vectors), dtype=torch.int64))


def opened(folder: Path) -> Searcher:
    """Over a new index of drawn vectors."""
    encoder, random = Cheap(), np.random.default_rng(0)
    centres = random.standard_normal((50, DIM), np.float32)
    # Of each answer it is looked up where its file is.
    source = Source("", "drawn", None, str(folder))
    index = create_index(folder, Head("cheap", {"text": encoder.fingerprint("text")}, DIM, (source,)))
    index.commit(rows_of(drawn(ROWS, DIM, 1.0, centres, random), 0))
    return Searcher(index, encoder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    logging.getLogger("modalloy").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        searcher = opened(Path(folder) / "index")
        app = create_app(searcher, ServeConfig())
        settings = uvicorn_settings(app, ServeConfig())
        settings.port = 0
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        connection = http.client.HTTPConnection("127.0.0.1", server.servers[0].sockets[0].getsockname()[1])
        body = json.dumps({"parts": [{"text": "a red telephone"}], "k": K})
        inside = []

        def request() -> None:
            connection.request("POST", "/v1/search", body, {"Content-Type": "application/json"})
            answer = json.load(connection.getresponse())
            assert len(answer["hits"]) == K
            inside.append(sum(answer["milliseconds"].values()))

        query = Query((Part(text="a red telephone"),), k=K)
        steps = {"direct": lambda: searcher.search(query), "HTTP": request}
        times = measure(steps, options.rounds, time.perf_counter)
        waited = statistics.median(inside)
        # On a busy machine threads wait for their turn; what is computed is counted apart.
        computed = measure(steps, options.rounds, time.process_time)
        connection.close()
        server.should_exit = True
        thread.join()
        app.state.service.close(10.0)
    print(f"of a request {waited:.2f} ms are the search's own, by its answer (p50)")
    added = report("time", times)
    report("processor time, the client's included,", computed)
    print(f"goal: at most {GOAL_MS:g} ms are added: {'met' if added < GOAL_MS else 'missed'}")


def report(kind: str, times: dict[str, list[float]]) -> float:
    """Prints the medians, and gives the milliseconds that the service adds."""
    direct, asked = (1000 * statistics.median(times[name]) for name in ("direct", "HTTP"))
    print(f"{kind} p50: direct {direct:.2f} ms, HTTP {asked:.2f} ms, the service adds {asked - direct:.2f} ms")
    return asked - direct


if __name__ == "__main__":
    main()
