"""Questions in words or pictures, answered from an index that may grow meanwhile."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from modalloy.encoders import Encoder, Modality, load_encoder
from modalloy.errors import CheckpointError
from modalloy.index import Index, Snapshot, open_index
from modalloy.index.encoder_spec import spec_at
from modalloy.index.lock import is_uri
from modalloy.search.hit import Answer, Hit
from modalloy.search.local_scores import LocalScores, local_encoders
from modalloy.search.query import Part, Query
from modalloy.search.rerank import Reranker
from modalloy.search.timing import timed
from modalloy.search.view import View
from modalloy.search.warming import warm

INDEX = "index"
"""The folder in which a run, or an alloy, keeps its index."""
LOCAL = "local"
"""The second stage by HACAN's local score."""
_BEFORE = "gallery"


class Searcher:
    """An index and the encoder that made it; safe to use from several threads.

    Each answer comes from one state of the index. `view` is the present one: a server that encodes several questions
    at once takes it once for both steps, `view.encode` and `view.answer`, since a refresh may come between them.

    Args:
        index: what is searched.
        encoder: what encodes questions; by default the one that the index names.
        rerankers: second stages by name, besides "local", which there is where the encoder has a local branch.

    Raises:
        CheckpointError: the index was made by another encoder, or with other weights or preprocessing.
        ConfigError: the encoder that the index names isn't known.
    """

    def __init__(
        self, index: Index, encoder: Encoder | None = None, rerankers: Mapping[str, Reranker] | None = None
    ) -> None:
        self._index, self._own, self._rerankers = index, encoder is None, dict(rerankers or {})
        self._encoding, self._refreshing = threading.Lock(), threading.Lock()
        snapshot = index.snapshot()
        encoder = encoder or self._load(snapshot)
        self._view = View(snapshot, encoder, self._second_stages(encoder), self._encoding)

    @classmethod
    def open(
        cls,
        location: str | Path,
        encoder: Encoder | None = None,
        rerankers: Mapping[str, Reranker] | None = None,
    ) -> Self:
        """Opens an index.

        Args:
            location: the index's folder or URI, or the folder of a run or an alloy that holds one.
            encoder: by default the one that the index names.
            rerankers: second stages by name, such as `{"itm": CrossEncoder(folder)}`.

        Raises:
            CheckpointError: there is no index, it is damaged, or was made by another encoder.
            ConfigError: the encoder that the index names isn't known.
        """
        return cls(open_index(find_index(location)), encoder, rerankers)

    @property
    def view(self) -> View:
        """The present state of the index with its encoder."""
        return self._view

    @property
    def snapshot(self) -> Snapshot:
        """The present state of the index."""
        return self._view.snapshot

    @property
    def encoder(self) -> Encoder:
        """What encodes questions."""
        return self._view.encoder

    def refresh(self) -> bool:
        """Takes the index's newest state, if there is a newer one; answers under way keep theirs.

        Where all vectors were replaced by another encoder's, that encoder is loaded, unless one was given.

        Raises:
            CheckpointError: the index is another encoder's now, and one was given; the state stays.
        """
        with self._refreshing:
            old, snapshot = self._view, self._index.snapshot()
            if (snapshot.version, snapshot.head.generation) == (old.snapshot.version, old.snapshot.head.generation):
                return False
            encoder, rerankers = old.encoder, old.rerankers
            if self._own and snapshot.head.fingerprints != old.snapshot.head.fingerprints:
                encoder = self._load(snapshot)
                # Without the lock, since questions go on with the old one meanwhile.
                warm(encoder)
                rerankers = self._second_stages(encoder)
            view = View(snapshot, encoder, rerankers, self._encoding)
            if old.sampled:
                view.read_ahead(old.sampled)
            self._view = view
            return True

    def encode(self, parts: Sequence[Part]) -> Float[Tensor, "parts dim"]:
        """See `View.encode`."""
        return self._view.encode(parts)

    def answer(self, query: Query, vectors: Float[Tensor, "parts dim"]) -> Answer:
        """See `View.answer`."""
        return self._view.answer(query, vectors)

    def search(self, query: Query) -> Answer:
        """The best answers to a question.

        Raises:
            ImageError: a picture of the question can't be decoded.
            DataError: the question names an item that the index doesn't have.
            ConfigError: the index or its encoder can't do what the question asks for.
        """
        view, took = self._view, dict[str, float]()
        with timed(took, "encode"):
            vectors = view.encode(query.parts)
        answer = view.answer(query, vectors)
        return replace(answer, milliseconds={**took, **answer.milliseconds})

    def by_text(self, text: str, k: int = 10, target: Modality = "image") -> list[Hit]:
        """The `k` images, or captions, most similar to a text, best first.

        Raises:
            DataError: the text is blank.
            ConfigError: `k` is below 1, or the encoder takes no texts.
        """
        return list(self.search(Query((Part(text=text),), target, k)).hits)

    def by_image(self, image: str | Path | Image.Image, k: int = 10, target: Modality = "image") -> list[Hit]:
        """The `k` images, or captions, most similar to a picture or the file of one, best first.

        A picture that is in the index finds itself.

        Raises:
            ImageError: the file can't be decoded.
            ConfigError: `k` is below 1, or the encoder takes no images.
        """
        return list(self.search(Query((Part(image=image),), target, k)).hits)

    def _second_stages(self, encoder: Encoder) -> dict[str, Reranker]:
        local: dict[str, Reranker] = {LOCAL: LocalScores(encoder)} if any(local_encoders(encoder)) else {}
        return local | self._rerankers

    def _load(self, snapshot: Snapshot) -> Encoder:
        return load_encoder(spec_at(snapshot.head.spec, self._index.location))


def find_index(location: str | Path) -> str:
    """The index at a location: itself, or that of the run or alloy whose folder it is.

    Raises:
        CheckpointError: it is a run or an alloy made before there were indexes.
    """
    if is_uri(str(location)):
        return str(location)
    folder = Path(location)
    if (folder / INDEX).is_dir():
        return str(folder / INDEX)
    if folder.name == _BEFORE or (folder / _BEFORE).is_dir():
        raise CheckpointError(
            f"{folder} was made by an earlier version, which kept galleries instead of an index; run the same command "
            "again (`modalloy run` or `modalloy fuse`): what it has stored is reused."
        )
    return str(folder)
