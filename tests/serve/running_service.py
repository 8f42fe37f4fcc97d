"""Serves toy pictures in a process of its own: `python running_service.py FOLDER`; it prints its address.

A search for captions takes as many seconds as it asks for answers, so that it can be told to stop during one.
"""

import logging
import sys
import time
from functools import partial
from pathlib import Path

TESTS = Path(__file__).parents[1]


def main(folder: str) -> None:
    sys.path.insert(0, str(TESTS))
    from serve.service_toys import Reader, index_of

    from modalloy.search import Searcher, View
    from modalloy.serve import ServeConfig, serve, server

    encoder = Reader()

    def opened(location):
        root = Path(location)
        return index_of(encoder, root, {path.name: path.name for path in root.iterdir()})

    answer = View.answer

    def slow(self, query, vectors):
        time.sleep(query.k if query.target == "text" else 0)
        return answer(self, query, vectors)

    View.answer = slow
    server.open_index, server.Searcher = opened, partial(Searcher, encoder=encoder)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    print("stopped", serve(folder, ServeConfig(port=0, stop_s=2.0, max_upload_bytes=100_000)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
