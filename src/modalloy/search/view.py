"""One state of an index with the encoder that made it: what an answer comes from, whatever is written meanwhile."""

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from modalloy.data import open_image
from modalloy.encoders import Encoder, Modality
from modalloy.encoders.base import MODALITIES
from modalloy.errors import CheckpointError, ConfigError, DataError, ModalloyError
from modalloy.index import Condition, Head, Snapshot
from modalloy.index.columns import vectors_in
from modalloy.index.picture_files import FILE, PictureFiles
from modalloy.index.schema import VECTOR, metadata_columns, metadata_of
from modalloy.search.combined import Combined, combine
from modalloy.search.explanation import VectorParts, contributions, restricted, vector_parts
from modalloy.search.hit import Answer, Hit
from modalloy.search.part_ranking import rank_by_part, require_part
from modalloy.search.query import Part, Query
from modalloy.search.rerank import Picture, Reranker, rerank
from modalloy.search.standard_score import sample_vectors
from modalloy.search.timing import timed
from modalloy.search.warming import warm
from modalloy.search.words import FoundWords, find_words, words_finder

_log = logging.getLogger(__name__)
_SHOWN = ("id", "picture_id", "source", "path", "captions", "width", "height")


class View:
    """Answers questions from one state of an index; safe to use from several threads.

    Args:
        snapshot: the state.
        encoder: what encodes questions.
        rerankers: second stages by name.
        lock: held while the encoder or a second stage works; views that share them share it.

    Raises:
        CheckpointError: the index was made by another encoder, or with other weights or preprocessing.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        encoder: Encoder,
        rerankers: Mapping[str, Reranker] | None = None,
        lock: "threading.Lock | None" = None,
    ) -> None:
        require_same_encoder(encoder, snapshot.head)
        self.snapshot, self.encoder, self.rerankers = snapshot, encoder, dict(rerankers or {})
        self._lock = lock or threading.Lock()
        self._sampling = threading.Lock()
        self._samples: dict[Modality, Float[Tensor, "sample dim"]] = {}
        self._counts: dict[Modality, int] = {}

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
        took, weights = dict[str, float](), [part.weight for part in query.parts]
        with timed(took, "search"):
            sample, where = self.sample(query.target), None
            if query.by is not None:
                where = require_part(self.vector_parts, query.by)
                vectors, sample = restricted(vectors, where), restricted(sample, where)
            asked = combine(weights, vectors, sample)
            hits = self._nearest(query, asked, where)
            searched = self._count(query)
        if query.rerank is not None:
            with timed(took, "rerank"):
                hits = self._reranked(query, query.rerank, hits)
        hits = hits[: query.k]
        if query.explain:
            with timed(took, "explain"):
                hits = self._explained(query, asked, hits)
        return Answer(tuple(hits), searched, self.snapshot.version, took)

    def words(self, id: str, text: str) -> FoundWords:
        """Where in a picture of the index, or the one that a caption describes, each word of a text is found.

        Raises:
            DataError: the index has no such picture, or the text is blank.
            ImageError: its file is no more, or another one.
            ConfigError: the encoder has no local branch that can tell.
        """
        picture = self._files.image(self._row(id, FILE))
        with self._lock:
            return find_words(self.encoder, picture, text)

    @cached_property
    def finds_words(self) -> bool:
        """Whether `words` can be asked for."""
        try:
            with self._lock:
                return words_finder(self.encoder) is not None
        except ModalloyError as error:
            # More-like-this works without the backbones, which may not be there where features were made elsewhere.
            _log.warning("words can't be found in pictures: %s", error)
            return False

    @cached_property
    def vector_parts(self) -> VectorParts | None:
        """What the index's vectors are folded from, by name; None where they can't be taken apart."""
        return vector_parts(self.encoder)

    def sample(self, modality: Modality) -> Float[Tensor, "sample dim"]:
        """The vectors by which scores are made comparable, drawn on first use."""
        with self._sampling:
            if modality not in self._samples:
                self._samples[modality] = sample_vectors(self.snapshot, modality)
            return self._samples[modality]

    def warm_up(self) -> None:
        """Loads what a first question would otherwise wait for: the encoder's backbones, the samples, the vectors."""
        with self._lock:
            warm(self.encoder)
        self.read_ahead(MODALITIES)

    def read_ahead(self, modalities: Iterable[Modality]) -> None:
        """Reads what a first question for pictures, or for captions, would otherwise wait for."""
        self.snapshot.read_ahead()
        for modality in modalities:
            sample = self.sample(modality)
            if len(sample):
                self.snapshot.search(modality, sample[:1], 1)

    @property
    def sampled(self) -> tuple[Modality, ...]:
        """Of what a sample has been drawn."""
        return tuple(self._samples)

    def _nearest(self, query: Query, asked: Combined, where: Sequence[slice] | None) -> list[Hit]:
        """The first stage: the nearest items by vectors, without those that the question names."""
        named = {part.like for part in query.parts if part.like is not None}
        wanted = query.k if query.rerank is None else max(query.k, query.rerank_depth)
        k = wanted + len(named)
        if where is None:
            (found,) = self.snapshot.search(query.target, asked.vector[None], k, query.where, query.exact)
        else:
            found = rank_by_part(self.snapshot, query.target, where, asked.vector, k, query.where)
        scores = {id: score for id, score in zip(found.ids, found.scores, strict=True) if id not in named}
        return self._shown(scores, asked)[:wanted]

    def _reranked(self, query: Query, name: str, hits: list[Hit]) -> list[Hit]:
        """The second stage: the best hits by what the reranker makes of all parts that it can compare with them."""
        if name not in self.rerankers:
            known = ", ".join(map(repr, self.rerankers)) or "none"
            raise ConfigError(f"there is no second stage {name!r} here, only {known}; leave rerank out, or add it.")
        reranker, looked = self.rerankers[name], hits[: query.rerank_depth]
        side: Modality = "text" if query.target == "image" else "image"
        asked = [(part.weight, found) for part in query.parts if (found := self._side(part, side)) is not None]
        if not asked:
            sought, lacking = ("pictures", "text") if query.target == "image" else ("captions", "picture")
            raise ConfigError(f"a second stage compares texts with pictures: to find {sought}, give a {lacking}.")
        texts = [found for _, found in asked if isinstance(found, str)] or [hit.caption or "" for hit in looked]
        pictures = [found for _, found in asked if isinstance(found, Picture)]
        if query.target == "image":
            rows = self.snapshot.rows([hit.id for hit in looked], FILE).to_pylist()
            pictures = [self._picture(row) for row in rows]
        with self._lock:
            table = reranker(texts, pictures)
        # In float32 a weight that is very small would be none at all.
        weights = torch.tensor([weight for weight, _ in asked], dtype=torch.float64)
        weights = (weights / weights.abs().max()).float()
        scores = (weights / weights.abs().sum()) @ (table if query.target == "image" else table.T)
        return rerank(hits, scores.tolist(), reranker.global_weight)

    def _side(self, part: Part, side: Modality) -> str | Picture | None:
        """The part's text, or its picture; None where it hasn't that side."""
        if part.like is not None:
            row = self._row(part.like, ("modality", "captions", *FILE))
            if row["modality"] != side:
                return None
            return row["captions"][0] if side == "text" else self._picture(row)
        image = part.image
        if side == "text" or image is None:
            return part.text if side == "text" else None
        return Picture(lambda: open_image(image) if isinstance(image, str | Path) else image)

    def _explained(self, query: Query, asked: Combined, hits: list[Hit]) -> list[Hit]:
        """The hits with what each encoder and each part of the question added to their scores."""
        if not hits:
            return hits
        column = VECTOR[query.target]
        vectors = vectors_in(self.snapshot.rows([hit.id for hit in hits], [column]), column)
        by_part = (vectors.double() @ asked.parts.double().T).tolist()
        parts = self.vector_parts
        by_encoder = [None] * len(hits) if parts is None else contributions(asked.vector, vectors, parts)
        return [
            replace(hit, contributions=encoders, part_contributions=tuple(added))
            for hit, encoders, added in zip(hits, by_encoder, by_part, strict=True)
        ]

    def _shown(self, scores: dict[str, float], asked: Combined) -> list[Hit]:
        """What the index knows of some answers."""
        fields = self.snapshot.metadata
        rows = self.snapshot.rows(list(scores), [*_SHOWN, *metadata_columns(fields)]).to_pylist()
        return [
            Hit(
                id=row["id"],
                score=scores[row["id"]],
                picture_id=row["picture_id"],
                standard_score=asked.spread.standard(scores[row["id"]]),
                path=path,
                captions=tuple(row["captions"] or ()),
                width=row["width"],
                height=row["height"],
                metadata=metadata_of(row, fields),
            )
            for row, path in zip(rows, self._files.paths(rows), strict=True)
        ]

    def _picture(self, row: Mapping[str, Any]) -> Picture:
        return Picture(partial(self._files.image, row), row["sha256"])

    @cached_property
    def _files(self) -> PictureFiles:
        return PictureFiles(self.snapshot.head.sources)

    def _count(self, query: Query) -> int:
        where = (Condition("modality", "=", query.target), *query.where)
        if query.where:
            return self.snapshot.count(where)
        if query.target not in self._counts:
            self._counts[query.target] = self.snapshot.count(where)
        return self._counts[query.target]

    def _stored(self, id: str) -> Float[Tensor, "dim"]:
        """The vector of an item of the index."""
        column = VECTOR[self._row(id, ["modality"])["modality"]]
        return vectors_in(self.snapshot.rows([id], [column]), column)[0]

    def _row(self, id: str, columns: Sequence[str]) -> dict[str, Any]:
        rows = self.snapshot.rows([id], columns).to_pylist()
        if not rows:
            raise DataError(f"the index has no picture or caption {id!r}.")
        return rows[0]


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
