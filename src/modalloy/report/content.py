"""What a report shows: the numbers, curves, examples and attention of one run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from modalloy.align.words import WordMap


@dataclass(frozen=True)
class QueryExample:
    """One caption as a query, and the images that each system finds for it."""

    query: str
    """The caption."""
    truth: Path
    """The image that the caption belongs to."""
    results: Mapping[str, Sequence[Path]]
    """Each system's first images, best first."""
    ranks: Mapping[str, float]
    """The rank of the true image in each system, from 1; half ranks come from ties."""


@dataclass(frozen=True)
class AttentionExample:
    """Where a fuser looks: the attention of an image's and a caption's tokens, by input encoder."""

    image: Path
    """The picture."""
    caption: str
    """Its caption."""
    image_maps: Mapping[str, Float[Tensor, "rows columns"]]
    """Each encoder's attention weights on its token grid, without the summary token.

    The grid lies on the picture's largest centred crop of the grid's shape, which is what encoders see.
    """
    word_weights: Mapping[str, Sequence[tuple[str, float]]]
    """Each encoder's text tokens and their attention weights, in reading order."""


@dataclass(frozen=True)
class WordExample:
    """A picture, its caption, and where in the picture each local branch finds the words."""

    image: Path
    """The picture."""
    caption: str
    """Its caption."""
    maps: Mapping[str, Sequence[WordMap]]
    """By encoder: some of the caption's words in reading order."""


@dataclass(frozen=True)
class ReportContent:
    """All that a report shows; whatever is empty gets no section."""

    title: str
    """The heading."""
    report: Mapping[str, Any]
    """The run's results as `report.json` holds them.

    "test" and "systems" at least; "differences", "inputs", "oracle", "level", "seconds", and by input "stages", where
    known.
    """
    recall_curves: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    """By system and direction ("image_to_text", "text_to_image"): the recall at 1, 2, 3, ..., in percent."""
    training: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """By fit: one row of metrics per epoch, as in `metrics.jsonl`; a value may be None."""
    examples: Sequence[QueryExample] = ()
    """Queries and what was found."""
    attentions: Sequence[AttentionExample] = ()
    """Pictures and captions with the attention on them."""
    words: Sequence[WordExample] = ()
    """Pictures and where in them the words of their captions are found."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """What made the run, by name: the configuration's text, fingerprints, versions."""
    notes: Sequence[str] = ()
    """Remarks that a reader of the numbers needs."""
