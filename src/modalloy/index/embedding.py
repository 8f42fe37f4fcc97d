"""Makes the rows of changed pictures: what can't be taken over from the index is decoded, ahead, and embedded."""

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from modalloy.data.build import Reject
from modalloy.data.images import open_image
from modalloy.data.known_files import FileState, KnownFiles
from modalloy.encoders import Encoder, Modality
from modalloy.encoders.base import Prepared
from modalloy.features.assembly import Features, Rejection, encode
from modalloy.features.preparation import Preparation, by_threads, without_bugs
from modalloy.features.sources import Source as Rows
from modalloy.index.base import Snapshot
from modalloy.index.changes import Change, Picture
from modalloy.index.columns import vectors_in
from modalloy.index.held import rows_of
from modalloy.index.schema import VECTOR
from modalloy.index.thumbnails import thumbnail_of

Looks = tuple[FileState | None, dict[str, Any]]
"""The state of a picture's file when it was decoded, None where it wasn't; and the picture's own columns."""


class Embedded(NamedTuple):
    """What became of some changed pictures."""

    pictures: list[Picture]
    """Those that have rows."""
    rows: list[dict[str, Any]]
    """Of the pictures and their captions, by column."""
    rejects: list[Reject]
    """Pictures that couldn't be decoded or embedded, which have no rows, and captions."""

    def extend(self, more: "Embedded") -> None:
        """Takes further pictures in."""
        self.pictures.extend(more.pictures)
        self.rows.extend(more.rows)
        self.rejects.extend(more.rejects)


@dataclass(frozen=True)
class Embedding:
    """How the rows of one source's pictures are made."""

    encoder: Encoder
    """Of images and texts."""
    snapshot: Snapshot
    """What is taken over comes from here."""
    source: str
    """The source's name."""
    root: Path
    """The folder that the pictures' paths start from."""
    files: KnownFiles
    """What is known of them."""
    batch_size: int
    """Pictures or captions of a forward pass."""
    workers: int | None = None
    """Threads that decode; default: one a core, at most 4."""

    @contextmanager
    def ahead(self, changes: Sequence[Change]) -> Iterator["Ahead"]:
        """Decodes the pictures of `changes` that are to be embedded, in threads, while earlier ones are."""
        pictures = _Pictures(self.root, self.files, [change.picture for change in changes if change.donor is None])
        workers = max(1, min(4, os.cpu_count() or 1)) if self.workers is None else self.workers
        prepare = Preparation(self.encoder, "image", pictures)
        rows = iter(range(len(pictures)))
        with closing(by_threads(prepare, rows, workers, ahead=self.batch_size + workers)) as prepared:
            yield Ahead(pictures, prepared)

    def rows(self, changes: Sequence[Change], ahead: "Ahead | None" = None) -> Embedded:
        """The rows of some changed pictures.

        Args:
            changes: as many as a forward pass takes; all of them free where nothing is decoded ahead.
            ahead: gives the pictures of `changes` next.

        Raises:
            FeatureError: the encoder breaks its contract.
        """
        made = Embedded([], [], [])
        taken = self._taken_over([change.donor for change in changes])
        decoded = {} if ahead is None else self._embedded(changes, ahead)
        usable = []
        for change in changes:
            # Apart, since a picture can be embedded anew while its old content moves elsewhere.
            image = decoded[change.picture.id] if change.donor is None else taken[change.donor]
            if isinstance(image, Rejection):
                made.rejects.append(Reject(change.picture.id, image.reason))
            else:
                usable.append((change, image))
        # Only of these: captions are of no use without their picture.
        vectors = iter(self._text_vectors([change for change, _ in usable]))
        for change, (file, columns) in usable:
            # The file may be another than when it was looked at.
            picture = change.picture if file is None else replace(change.picture, file=file)
            texts: list[np.ndarray | None] = []
            for id, vector in zip(picture.caption_ids, list(islice(vectors, len(change.texts))), strict=True):
                if isinstance(vector, Rejection):
                    made.rejects.append(Reject(id, vector.reason))
                texts.append(None if isinstance(vector, Rejection) else vector)
            made.pictures.append(picture)
            made.rows.extend(rows_of(picture, self.source, columns, texts))
        return made

    def _taken_over(self, donors: Sequence[str | None]) -> dict[str, Looks]:
        columns = ["width", "height", "thumbnail"]
        ids = list({donor for donor in donors if donor is not None})
        if not ids:
            return {}
        table = self.snapshot.rows(ids, ["id", VECTOR["image"], *columns])
        looks = table.select(columns).to_pylist()
        return {
            id: (None, {VECTOR["image"]: vector, **look})
            for (id, vector), look in zip(_vectors(table, "image").items(), looks, strict=True)
        }

    def _embedded(self, changes: Sequence[Change], ahead: "Ahead") -> dict[str, Looks | Rejection]:
        ids = [change.picture.id for change in changes if change.donor is None]
        answers = encode(self.encoder, "image", without_bugs(list(islice(ahead.prepared, len(ids)))))
        found: dict[str, Looks | Rejection] = {}
        for id, answer in zip(ids, answers, strict=True):
            looks = ahead.pictures.looks.pop(id, None)
            if isinstance(answer, Rejection):
                found[id] = answer
            else:
                assert looks is not None
                file, columns = looks
                found[id] = file, {VECTOR["image"]: answer.embedding.numpy(), **columns}
        return found

    def _text_vectors(self, changes: Sequence[Change]) -> list[np.ndarray | Rejection | None]:
        """The vector of each caption, one change after the other; None for one that the encoder refused before."""
        known = [text for change in changes for text in change.texts if text is not None]
        table = self.snapshot.rows(list(set(known)), ["id", VECTOR["text"]]) if known else None
        held = {} if table is None else _vectors(table, "text")
        captions = _Captions(
            [
                caption
                for change in changes
                for caption, text in zip(change.picture.captions, change.texts, strict=True)
                if text is None
            ]
        )
        answers = iter(self._embedded_texts(captions))
        return [next(answers) if text is None else held.get(text) for change in changes for text in change.texts]

    def _embedded_texts(self, captions: "_Captions") -> Iterator[np.ndarray | Rejection]:
        prepare = Preparation(self.encoder, "text", captions)
        for start in range(0, len(captions), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(captions)))
            for answer in encode(self.encoder, "text", without_bugs([prepare(row) for row in rows])):
                yield answer.embedding.numpy() if isinstance(answer, Features) else answer


class Ahead(NamedTuple):
    """Pictures that are being decoded."""

    pictures: "_Pictures"
    prepared: Generator[Prepared | Rejection, None, None]


class _Pictures(Rows):
    """Pictures to be decoded; what else is kept of one stands in `looks` once it is loaded."""

    def __init__(self, root: Path, files: KnownFiles, pictures: Sequence[Picture]) -> None:
        self.ids = [picture.id for picture in pictures]
        self.looks: dict[str, Looks] = {}
        self._root, self._files, self._pictures = root, files, pictures

    def content(self, row: int) -> str:
        return self._pictures[row].file.sha256

    def path(self, row: int) -> str:
        return self._pictures[row].path

    def load(self, row: int) -> Image.Image:
        # Looked at before it is read: if it changes meanwhile, the next look finds that.
        file = self._files.look(self._root, self.path(row))
        picture = open_image(self._root / self.path(row))
        thumbnail = thumbnail_of(picture)
        columns = {"width": picture.width, "height": picture.height, "thumbnail": thumbnail}
        self.looks[self.ids[row]] = file, columns
        return picture


class _Captions(Rows):
    """Captions to be embedded."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.ids = captions

    def content(self, row: int) -> str:
        return self.ids[row]

    def path(self, row: int) -> str:
        return ""

    def load(self, row: int) -> str:
        return self.ids[row]


def _vectors(table: pa.Table, modality: Modality) -> Mapping[str, np.ndarray]:
    ids = table.column("id").to_pylist()
    if not ids:
        return {}
    return dict(zip(ids, vectors_in(table, VECTOR[modality]).numpy(), strict=True))
