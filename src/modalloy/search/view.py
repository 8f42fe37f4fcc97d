"""One state of an index with the encoder that made it: what an answer comes from, whatever is written meanwhile."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from modalloy.data import open_image
from modalloy.encoders import Encoder, Modality
from modalloy.errors import CheckpointError, DataError
from modalloy.index import Condition, Head, Snapshot
from modalloy.index.schema import META, VECTOR
from modalloy.search.columns import vectors_in
from modalloy.search.combined import Combined, combine
from modalloy.search.hit import Answer, Hit
from modalloy.search.query import Part, Query
from modalloy.search.standard_score import sample_vectors

_SHOWN = ("id", "picture_id", "source", "path", "captions", "width", "height")


class View:
    """Answers questions from one state of an index; safe to use from several threads.

    Args:
        snapshot: the state.
        encoder: what encodes questions.
        lock: held while the encoder works; views of one encoder share it.

    Raises:
        CheckpointError: the index was made by another encoder, or with other weights or preprocessing.
    """

    def __init__(self, snapshot: Snapshot, encoder: Encoder, lock: "threading.Lock | None" = None) -> None:
        require_same_encoder(encoder, snapshot.head)
        self.snapshot, self.encoder = snapshot, encoder
        self._lock = lock or threading.Lock()
        self._sampling = threading.Lock()
        self._samples: dict[Modality, Float[Tensor, "sample dim"]] = {}

    def encode(self, parts: Sequence[Part]) -> Float[Tensor, "parts dim"]:
        """The vector of each part, of one question or several: a text's, a picture's, or that of an item of the index.

        Raises:
            ImageError: a picture's file can't be decoded.
            DataError: the index has no such item.
            ConfigError: the encoder takes no texts, or no pictures.
        """
        vectors = torch.empty(len(parts), self.snapshot.head.dim)
        texts = {place: part.text for place, part in enumerate(parts) if part.text is not None}
        files = {place: part.image for place, part in enumerate(parts) if part.image is not None}
        # Decoded before the lock is taken, so that it is held for the encoder alone.
        pictures = {place: open_image(file) if isinstance(file, str | Path) else file for place, file in files.items()}
        with self._lock:
            if texts:
                vectors[list(texts)] = self.encoder.encode_texts(list(texts.values())).embedding.cpu().float()
            if pictures:
                vectors[list(pictures)] = self.encoder.encode_images(list(pictures.values())).embedding.cpu().float()
        for place, part in enumerate(parts):
            if part.like is not None:
                vectors[place] = self._stored(part.like)
        return vectors

    def answer(self, query: Query, vectors: Float[Tensor, "parts dim"]) -> Answer:
        """The best answers to a question whose parts are encoded.

        Args:
            query: the question.
            vectors: what `encode` gave for its parts.

        Raises:
            ConfigError: the index has no field of a condition, or can't do what the question asks for.
            DataError: there isn't one finite vector for each part.
        """
        if len(vectors) != len(query.parts):
            raise DataError(f"a question of {len(query.parts)} parts needs as many vectors, got {len(vectors)}.")
        took = dict[str, float]()
        with _timed(took, "search"):
            asked = combine([part.weight for part in query.parts], vectors, self.sample(query.target))
            hits = self._nearest(query, asked)[: query.k]
            searched = self._count(query)
        return Answer(tuple(hits), searched, self.snapshot.version, took)

    def sample(self, modality: Modality) -> Float[Tensor, "sample dim"]:
        """The vectors by which scores are made comparable, drawn on first use."""
        with self._sampling:
            if modality not in self._samples:
                self._samples[modality] = sample_vectors(self.snapshot, modality)
            return self._samples[modality]

    @property
    def sampled(self) -> tuple[Modality, ...]:
        """Of what a sample has been drawn."""
        return tuple(self._samples)

    def _nearest(self, query: Query, asked: Combined) -> list[Hit]:
        """The first stage: the nearest items by vectors, without those that the question names."""
        named = {part.like for part in query.parts if part.like is not None}
        wanted = query.k + len(named)
        (found,) = self.snapshot.search(query.target, asked.vector[None], wanted, query.where, query.exact)
        scores = {id: score for id, score in zip(found.ids, found.scores, strict=True) if id not in named}
        return self._shown(scores, asked)[: wanted - len(named)]

    def _shown(self, scores: dict[str, float], asked: Combined) -> list[Hit]:
        """What the index knows of some answers."""
        metadata = {name: META + name for name in self.snapshot.metadata}
        rows = self.snapshot.rows(list(scores), [*_SHOWN, *metadata.values()]).to_pylist()
        return [
            Hit(
                id=row["id"],
                score=scores[row["id"]],
                picture_id=row["picture_id"],
                standard_score=asked.spread.standard(scores[row["id"]]),
                path=self._path(row["source"], row["path"]),
                captions=tuple(row["captions"] or ()),
                width=row["width"],
                height=row["height"],
                metadata={name: row[column] for name, column in metadata.items() if row[column] is not None},
            )
            for row in rows
        ]

    def _path(self, source: str | None, path: str | None) -> str | None:
        root = self._roots.get(source or "")
        return None if root is None or path is None else str(Path(root) / path)

    @cached_property
    def _roots(self) -> dict[str, str]:
        return {source.name: source.root for source in self.snapshot.head.sources}

    def _count(self, query: Query) -> int:
        return self.snapshot.count((Condition("modality", "=", query.target), *query.where))

    def _stored(self, id: str) -> Float[Tensor, "dim"]:
        """The vector of an item of the index."""
        rows = self.snapshot.rows([id], ["id", "modality"])
        if not len(rows):
            raise DataError(f"the index has no picture or caption {id!r} to look for the like of.")
        column = VECTOR[rows["modality"][0].as_py()]
        return vectors_in(self.snapshot.rows([id], [column]), column)[0]


def require_same_encoder(encoder: Encoder, head: Head) -> None:
    """Refuses an encoder whose vectors don't compare with an index's.

    Raises:
        CheckpointError: the index was made by another encoder, or with other weights or preprocessing.
    """
    for modality in encoder.modalities:
        expected, got = head.fingerprints.get(modality), encoder.fingerprint(modality)
        if expected is None or expected.digest != got.digest:
            made_by = "another encoder" if expected is None else f"{expected.name} ({expected.digest[:12]})"
            raise CheckpointError(
                f"The index was made by {made_by}, but {modality} queries would be encoded by {got.name} "
                f"({got.digest[:12]}); restore that encoder, or make the index again."
            )


@contextmanager
def _timed(took: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        took[step] = took.get(step, 0.0) + (time.perf_counter() - start) * 1000
