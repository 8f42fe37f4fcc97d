"""Looks an index through: each row, its file where that is asked for, and whether searches find what is there."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from modalloy.data.images import decode_image
from modalloy.data.item import is_path
from modalloy.encoders import Modality
from modalloy.encoders.base import MODALITIES
from modalloy.errors import ImageError
from modalloy.index.base import Found, Index, Snapshot
from modalloy.index.columns import vectors_in
from modalloy.index.findings import Finding, Findings
from modalloy.index.picture_files import FILE, PictureFiles, sha256_of_file
from modalloy.index.row_checks import RowChecks, scanned
from modalloy.index.schema import COLUMNS, VECTOR, metadata_columns

SAMPLE = 64
"""So many pictures and captions are searched for."""

POOR = 0.9
"""An approximate search with a smaller recall is a problem."""

_K = 10
_CLOSE = 1e-4
_Questions: TypeAlias = tuple[Modality, Float[Tensor, "_ dim"], list[Found]]


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
    """Share of the exact 10 best that approximate searches found, from disk or read ahead, whichever found less.
    Captions ask for pictures and pictures for captions; where there are none, which is easier, those of their own kind.
    None where nothing was searched."""
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
    samples = {modality: checks.sample(modality, SAMPLE, seed) for modality in MODALITIES}
    questions = _search(snapshot, samples, findings)
    recalls = {}
    if questions:
        recalls["from disk"] = _recall(snapshot, questions)
        # As a service does, whose searches may differ from those of a command.
        snapshot.read_ahead()
        recalls["read ahead"] = _recall(snapshot, questions)
    poor = [f"{how}: recall@{_K} {recall:.2f}" for how, recall in recalls.items() if recall < POOR]
    findings.add("approximate search poor", *poor)
    repaired = _repair(index, snapshot, checks) if repair else 0
    return Verification(
        version=snapshot.version,
        **checks.counts(),
        unembedded=checks.unembedded,
        sampled=sum(map(len, samples.values())),
        recall=min(recalls.values(), default=None),
        findings=tuple(findings.all),
        repaired=repaired,
    )


def _search(snapshot: Snapshot, samples: Mapping[Modality, list[str]], findings: Findings) -> list[_Questions]:
    """Searches for stored vectors exactly; questions with their answers, to ask again approximately."""
    stored = {modality: _stored(snapshot, modality, ids) for modality, ids in samples.items() if ids}
    questions = []
    for modality, (ids, own) in stored.items():
        others = torch.cat([own[:0], *(vectors for side, (_, vectors) in stored.items() if side != modality)])
        best = snapshot.search(modality, torch.cat([own, others]), _K, exact=True)
        for id, vector, found in zip(ids, own, best, strict=False):
            if not _is_found(id, float(vector @ vector), found):
                findings.add("not found by itself", id)
        questions.append((modality, others, best[len(ids) :]) if len(others) else (modality, own, best))
    return questions


def _recall(snapshot: Snapshot, questions: Sequence[_Questions]) -> float:
    """The share of the best that the approximate search finds; others may be as good, and then any of them."""
    return float(
        np.mean(
            [
                sum(score >= min(best.scores) - _CLOSE for score in found.scores) / len(best.scores)
                if best.scores
                else 0.0
                for modality, vectors, truth in questions
                for best, found in zip(truth, snapshot.search(modality, vectors, _K), strict=True)
            ]
        )
    )


def _stored(snapshot: Snapshot, modality: Modality, ids: list[str]) -> tuple[list[str], Float[Tensor, "ids dim"]]:
    table = snapshot.rows(ids, ["id", VECTOR[modality]])
    return table["id"].to_pylist(), vectors_in(table, VECTOR[modality])


def _is_found(id: str, score: float, best: Found) -> bool:
    """Whether an item is among the best for its own vector, with the score that it must have."""
    if id in best.ids:
        return abs(best.scores[best.ids.index(id)] - score) <= _CLOSE
    # Others may be as good, and then any of them.
    return len(best.ids) == _K and best.scores[-1] >= score - _CLOSE


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
    columns = [*COLUMNS, *VECTOR.values(), *metadata_columns(snapshot.metadata)]
    kept = snapshot.rows(doubled, columns)
    # A row that replaces two would be there twice again.
    index.commit(removed=removed)
    if len(kept):
        index.commit(kept)
    return before - index.snapshot().count()
