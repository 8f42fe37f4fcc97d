"""Looks at every row of a snapshot once, so that a hash of each id is all that is kept of it."""

import io
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from PIL import Image

from modalloy.data.images import MAX_PIXELS
from modalloy.data.item import is_path
from modalloy.encoders import Modality
from modalloy.encoders.base import MODALITIES
from modalloy.index.base import Snapshot
from modalloy.index.findings import Findings
from modalloy.index.schema import VECTOR
from modalloy.progress import progress_bar

UNIT = 5e-3
"""How far from 1 a norm may be: as far as float16 can take it, and more."""

_SEEN = ("id", "modality", "picture_id", "source", "path", "captions", "thumbnail", *VECTOR.values())
_BAR_FROM = 50_000


class RowChecks:
    """What is wrong with the rows of a snapshot, each by itself and among each other.

    Args:
        snapshot: what to look at.
        findings: where to count what is wrong.
    """

    def __init__(self, snapshot: Snapshot, findings: Findings) -> None:
        self._snapshot, self._findings = snapshot, findings
        self._sources = {source.name for source in snapshot.head.sources}
        # Hashes of all ids; of the pictures' alone; of the captions that pictures list, without and with their texts.
        self._ids, self._pictures, self._listed, self._listed_texts = (array("q") for _ in range(4))
        # The same of the captions' own rows, and these rows' numbers.
        self._parents, self._captions, self._texts, self._rows = (array("q") for _ in range(4))
        self._usable: dict[Modality, array[int]] = {modality: array("q") for modality in MODALITIES}
        self.repeated: list[str] = []
        """Ids that several rows have."""
        self.orphans: list[str] = []
        """Rows that belong to nothing."""
        self.unembedded = 0
        """Captions that a picture lists and that have no row, as those that the encoder refused."""

    def run(self) -> None:
        """Looks at all rows."""
        for batch in scanned(self._snapshot, _SEEN, "checking rows"):
            self._look(batch)
            for modality in MODALITIES:
                self._look_at_vectors(batch, modality)
            self._ids.extend(map(hash, batch["id"].to_pylist()))
        self._compare()

    def counts(self) -> dict[str, int]:
        """How many rows there are of each kind."""
        return {"rows": len(self._ids), "pictures": len(self._pictures), "captions": len(self._captions)}

    def sample(self, modality: Modality, size: int, seed: int) -> list[str]:
        """The ids of some rows that can be searched for, drawn by `seed`."""
        usable = np.asarray(self._usable[modality])
        drawn = np.random.default_rng(seed).choice(usable, min(size, len(usable)), replace=False)
        return self._named(drawn)

    def _look(self, batch: pa.RecordBatch) -> None:
        names = ("id", "modality", "picture_id", "source", "path", "captions", "thumbnail")
        for number, row in enumerate(zip(*(batch[name].to_pylist() for name in names), strict=True), len(self._ids)):
            id, modality, picture_id, source, path, captions, thumbnail = row
            if modality == "image":
                self._pictures.append(hash(id))
                for position, caption in enumerate(captions or ()):
                    self._listed.append(hash(f"{id}#{position}"))
                    self._listed_texts.append(hash((f"{id}#{position}", caption)))
            elif modality == "text":
                self._parents.append(hash(picture_id))
                self._captions.append(hash(id))
                self._texts.append(hash((id, *(captions or ()))))
                self._rows.append(number)
            else:
                self._findings.add("neither picture nor caption", id)
                self.orphans.append(id)
            if source not in self._sources:
                self._findings.add("unknown source", id)
            if not is_path(path):
                self._findings.add("path out of its folder", id)
            if thumbnail is not None and not is_thumbnail(thumbnail):
                self._findings.add("thumbnail broken", id)

    def _look_at_vectors(self, batch: pa.RecordBatch, modality: Modality) -> None:
        column = batch[VECTOR[modality]]
        ids, own = batch["id"], np.array([found == modality for found in batch["modality"].to_pylist()], bool)
        present = column.is_valid().to_numpy(zero_copy_only=False)
        self._add("no vector", ids, own & ~present)
        self._add("vector of the other kind", ids, present & ~own)
        vectors = column.drop_null()
        if not len(vectors):
            return
        if column.type.list_size != self._snapshot.head.dim:
            self._add("vectors of another length", ids, present)
            return
        values = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1)
        finite = np.isfinite(values).all(axis=1)
        unit = np.abs(np.linalg.norm(np.where(finite[:, None], values, 0), axis=1) - 1) <= UNIT
        places = np.flatnonzero(present)
        self._add("vector not finite", ids, places[~finite])
        self._add("vector not of unit norm", ids, places[finite & ~unit])
        self._usable[modality].extend((places[finite] + len(self._ids)).tolist())

    def _add(self, kind: str, ids: pa.Array, rows: np.ndarray) -> None:
        self._findings.add(kind, *ids.take(pa.array(np.flatnonzero(rows) if rows.dtype == bool else rows)).to_pylist())  # type: ignore[arg-type]

    def _compare(self) -> None:
        """Compares the rows with each other by their hashes, and then by name what these make suspicious."""
        ids, rows = np.asarray(self._ids), np.asarray(self._rows)
        sorted_ids = np.sort(ids)
        suspects = sorted_ids[1:][sorted_ids[1:] == sorted_ids[:-1]]
        named = Counter(self._named(np.flatnonzero(np.isin(ids, suspects))))
        self.repeated = [id for id, count in named.items() if count > 1]
        self._findings.add("id twice", *self.repeated)
        listed = np.isin(self._captions, self._listed)
        lost = ~(np.isin(self._parents, self._pictures) & listed)
        orphans = self._named(rows[lost])
        self._findings.add("caption without its picture", *orphans)
        self.orphans += orphans
        unlike = ~lost & ~np.isin(self._texts, self._listed_texts)
        self._findings.add("caption unlike its picture's", *self._named(rows[unlike]))
        self.unembedded = int((~np.isin(self._listed, self._captions)).sum())

    def _named(self, rows: np.ndarray) -> list[str]:
        """The ids of some rows by their numbers, which a second scan of the same snapshot has alike."""
        wanted, names, start = np.sort(rows), list[str](), 0
        if not len(wanted):
            return names
        for batch in self._snapshot.scan(["id"]):
            here = wanted[(wanted >= start) & (wanted < start + len(batch))] - start
            names += batch["id"].take(pa.array(here)).to_pylist()
            start += len(batch)
        return names


def scanned(snapshot: Snapshot, columns: Iterable[str], what: str) -> Iterator[pa.RecordBatch]:
    """Scans all rows, with a progress bar if there are many."""
    total = snapshot.count()
    if total < _BAR_FROM:
        yield from snapshot.scan(list(columns))
        return
    with progress_bar() as progress:
        task = progress.add_task(what, total=total)
        for batch in snapshot.scan(list(columns)):
            yield batch
            progress.advance(task, len(batch))


def is_thumbnail(content: bytes) -> bool:
    """Whether bytes are a small enough JPEG."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                return False
            image.load()
    # Damaged files make Pillow raise nearly anything.
    except Exception:
        return False
    return True
