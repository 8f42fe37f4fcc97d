"""What a question is answered with."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Metadata = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer to a question."""

    id: str
    """The picture's id, or the caption's."""
    score: float
    """The inner product with the question: a cosine where vectors are of unit norm and the question has one part."""
    picture_id: str = ""
    """The picture's id; for a caption, that of the picture it describes."""
    standard_score: float = 0.0
    """The score less the mean of the question's scores over the index, in units of their standard deviation.

    So it can be compared between questions, and says by how much an answer stands out."""
    path: str | None = None
    """The picture's file, absolute where its folder is known; for a caption, that of the picture it describes."""
    captions: tuple[str, ...] = ()
    """All captions of a picture; of a caption its text."""
    width: int | None = None
    """Of the upright picture in pixels, where known; None for a caption."""
    height: int | None = None
    """As the width."""
    metadata: Mapping[str, Metadata] = field(default_factory=dict)
    """What the index's users know of it."""
    rerank_score: float | None = None
    """That of the second stage, by which the first answers are then in order; None where it didn't look."""
    contributions: Mapping[str, float] | None = None
    """What each encoder in the alloy added to the score, where asked for; None where vectors can't be taken apart."""
    part_contributions: tuple[float, ...] | None = None
    """What each part of the question added to the score, where asked for."""

    @property
    def caption(self) -> str | None:
        """The caption; for a picture, the first of its captions."""
        return self.captions[0] if self.captions else None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found, from one state of the index."""

    hits: tuple[Hit, ...]
    """Best first."""
    searched: int
    """How many pictures, or captions, satisfied the conditions."""
    version: int
    """Of the index's state."""
    milliseconds: Mapping[str, float]
    """How long each step took: "encode", "search", "rerank", "explain"."""
