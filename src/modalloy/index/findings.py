"""What can be wrong with an index, and how each is mended."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal[
    "id twice",
    "neither picture nor caption",
    "caption without its picture",
    "caption unlike its picture's",
    "unknown source",
    "path out of its folder",
    "no vector",
    "vector of the other kind",
    "vectors of another length",
    "vector not finite",
    "vector not of unit norm",
    "thumbnail broken",
    "file missing or unreadable",
    "file changed",
    "file broken",
    "not found by itself",
    "approximate search poor",
]

_EMBED_ANEW = "modalloy index remove it, then modalloy index update"
_MENDS: Mapping[Kind, str] = {
    "id twice": "modalloy index verify --repair keeps one of them",
    "neither picture nor caption": "modalloy index verify --repair removes it",
    "caption without its picture": "modalloy index verify --repair removes it",
    "caption unlike its picture's": _EMBED_ANEW,
    "unknown source": "modalloy index add its collection again",
    "path out of its folder": "modalloy index remove it; its file is never opened",
    "no vector": _EMBED_ANEW,
    "vector of the other kind": _EMBED_ANEW,
    "vectors of another length": "modalloy index build it anew",
    "vector not finite": _EMBED_ANEW,
    "vector not of unit norm": _EMBED_ANEW,
    "thumbnail broken": _EMBED_ANEW,
    "file missing or unreadable": "put it back, or modalloy index update",
    "file changed": "modalloy index update",
    "file broken": "replace it, then modalloy index update",
    "not found by itself": "modalloy index optimize; if that doesn't help, build the index anew",
    "approximate search poor": "modalloy index optimize; if that doesn't help, search with --exact",
}

EXAMPLES = 5
"""How many of a kind are named."""


@dataclass(slots=True)
class Finding:
    """One kind of problem."""

    kind: Kind
    """What is wrong."""
    count: int = 0
    """In how many rows."""
    examples: list[str] = field(default_factory=list)
    """The first of them, by their ids."""

    @property
    def mend(self) -> str:
        """How to mend it."""
        return _MENDS[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "mend": self.mend}


class Findings:
    """Counts problems by their kind.

    >>> findings = Findings()
    >>> for id in "abcdefg":
    ...     findings.add("no vector", id)
    >>> findings.all
    [Finding(kind='no vector', count=7, examples=['a', 'b', 'c', 'd', 'e'])]
    """

    def __init__(self) -> None:
        self._by_kind: dict[Kind, Finding] = {}

    def add(self, kind: Kind, *ids: str) -> None:
        """Counts rows that have a problem."""
        for id in ids:
            finding = self._by_kind.setdefault(kind, Finding(kind))
            finding.count += 1
            if len(finding.examples) < EXAMPLES:
                finding.examples.append(id)

    @property
    def all(self) -> list[Finding]:
        """What was found, in the order of first sight."""
        return list(self._by_kind.values())
