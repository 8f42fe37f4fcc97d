"""Serves toy pictures in a process of its own: `python running_service.py FOLDER SECONDS`; it prints its address.

Each search takes SECONDS, so that it can be told to stop during one.
"""

import logging
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]


def main(folder: str, seconds: float) -> None:
    sys.path.insert(0, str(TESTS))
    from index.memory_index import MemoryIndex
    from serve.service_toys import Reader, rows_of

    from modalloy.index import Head, Source
    from modalloy.search import Searcher
    from modalloy.serve import ServeConfig, serve

    class Slow(Searcher):
        @classmethod
        def open(cls, location):
            encoder, root = Reader(), Path(location)
            sides = {modality: encoder.fingerprint(modality) for modality in encoder.modalities}
            index = MemoryIndex(Head("toy", sides, encoder.dim("image"), (Source("", location, None, location),)))
            index.commit(rows_of(encoder, root, {path.name: path.name for path in root.iterdir()}))
            return cls(index, encoder)

        @property
        def view(self):
            return _SlowView(self._view)

    class _SlowView:
        def __init__(self, view):
            self._of = view

        def __getattr__(self, name):
            return getattr(self._of, name)

        def answer(self, *given):
            time.sleep(seconds)
            return self._of.answer(*given)

    from modalloy.serve import server

    server.Searcher = Slow
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    print("stopped", serve(folder, ServeConfig(port=0, stop_s=2.0, max_upload_bytes=100_000)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
