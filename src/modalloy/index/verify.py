"""Looks an index through: each row, its file where that is asked for, and whether searches find what is there."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from modalloy.data.images import decode_image
from modalloy.data.item import is_path
from modalloy.encoders import Modality
from modalloy.encoders.base import MODALITIES
from modalloy.errors import ImageError
from modalloy.index.base import Index, Snapshot
from modalloy.index.columns import vectors_in
from modalloy.index.findings import Finding, Findings
from modalloy.index.picture_files import FILE, PictureFiles, sha256_of_file
from modalloy.index.row_checks import RowChecks, scanned
from modalloy.index.schema import COLUMNS, META, VECTOR

SAMPLE = 64
"""So many pictures and captions are searched for."""

POOR = 0.9
"""An approximate search with a smaller recall is a problem."""

_K = 10
_CLOSE = 1e-4


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found."""

    version: int
    """Of the index."""
    rows: int
    """All of them."""
    pictures: int
    """How many rows are pictures'."""
    captions: int
    """How many rows are captions'."""
    unembedded: int
    """Captions that a picture lists and that have no row, as those that the encoder refused; no problem.
    `modalloy index update --rehash` tries them again."""
    sampled: int
    """How many stored vectors were searched for."""
    recall: float | None
    """Share of their exact 10 best that the approximate search found; None where nothing was searched."""
    findings: tuple[Finding, ...]
    """What is wrong."""
    repaired: int = 0
    """How many rows were removed."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "findings": [finding.to_dict() for finding in self.findings]}


def verify_index(index: Index, *, files: bool = False, repair: bool = False, seed: int = 0) -> Verification:
    """Checks every row of an index, and by a sample that its searches find what they should.

    Args:
        index: what to look through; others may write to it meanwhile, unless it is repaired.
        files: also read each picture's file, compare it with the checksum, and decode it.
        repair: remove rows that belong to nothing, and all but one of those with the same id. The latter takes two
            commits: after a crash between them, `modalloy index update --rehash` embeds what is missing.
        seed: draws the sample.

    Raises:
        CheckpointError: the index can't be read.
    """
    snapshot, findings = index.snapshot(), Findings()
    checks = RowChecks(snapshot, findings)
    checks.run()
    if files:
        _check_files(snapshot, findings)
    recalls = [
        recall
        for modality in MODALITIES
        for recall in _search(snapshot, modality, checks.sample(modality, SAMPLE, seed), findings)
    ]
    recall = float(np.mean(recalls)) if recalls else None
    if recall is not None and recall < POOR:
        findings.add("approximate search poor", f"recall@{_K} {recall:.2f}")
    repaired = _repair(index, snapshot, checks) if repair else 0
    return Verification(
        version=snapshot.version,
        **checks.counts(),
        unembedded=checks.unembedded,
        sampled=len(recalls),
        recall=recall,
        findings=tuple(findings.all),
        repaired=repaired,
    )


def _search(snapshot: Snapshot, modality: Modality, ids: list[str], findings: Findings) -> Iterator[float]:
    """The recall of each stored vector's approximate search."""
    if not ids:
        return
    table = snapshot.rows(ids, ["id", VECTOR[modality]])
    vectors = vectors_in(table, VECTOR[modality])
    exact = snapshot.search(modality, vectors, _K, exact=True)
    approximate = snapshot.search(modality, vectors, _K)
    for id, own, best, found in zip(table["id"].to_pylist(), vectors, exact, approximate, strict=True):
        score = float(own @ own)
        # Others may be as good, and then any of them.
        missed = id not in best.ids and (len(best.ids) < _K or best.scores[-1] < score - _CLOSE)
        wrong = id in best.ids and abs(best.scores[best.ids.index(id)] - score) > _CLOSE
        if missed or wrong or not best.scores:
            findings.add("not found by itself", id)
            continue
        yield min(1.0, sum(score >= best.scores[-1] - _CLOSE for score in found.scores) / len(best.scores))


def _check_files(snapshot: Snapshot, findings: Findings) -> None:
    files = PictureFiles(snapshot.head.sources)
    known = {source.name for source in snapshot.head.sources}
    for batch in scanned(snapshot, ("id", "modality", *FILE), "checking files"):
        for row in batch.to_pylist():
            # Of any other one it was said with its row.
            if row["modality"] == "image" and row["source"] in known and is_path(row["path"]):
                _check_file(files, row, findings)


def _check_file(files: PictureFiles, row: Mapping[str, Any], findings: Findings) -> None:
    if files.path(row) is None:
        findings.add("path out of its folder", row["id"])
        return
    try:
        opened = files.open(row)
    except ImageError:
        findings.add("file missing or unreadable", row["id"])
        return
    with opened.file as file:
        if row["sha256"] is not None and sha256_of_file(opened) != row["sha256"]:
            findings.add("file changed", row["id"])
            return
        try:
            decode_image(file, row["id"])
        except ImageError:
            findings.add("file broken", row["id"])


def _repair(index: Index, snapshot: Snapshot, checks: RowChecks) -> int:
    """Removes what belongs to nothing and what is there twice; gives how many rows are gone."""
    before = snapshot.count()
    doubled = sorted(set(checks.repeated) - set(checks.orphans))
    removed = sorted({*checks.orphans, *doubled})
    if not removed:
        return 0
    columns = [*COLUMNS, *VECTOR.values(), *(META + name for name in snapshot.metadata)]
    kept = snapshot.rows(doubled, columns)
    # A row that replaces two would be there twice again.
    index.commit(removed=removed)
    if len(kept):
        index.commit(kept)
    return before - index.snapshot().count()
