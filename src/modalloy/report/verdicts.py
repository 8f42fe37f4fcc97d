"""What beats what: a difference and its interval, said in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from modalloy.report.numbers import fixed, is_number, signed

Outcome = Literal["ahead", "behind", "open", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """The difference in RSum between two systems, and whether its interval leaves a doubt."""

    a: str
    """The system whose RSum the difference is taken from."""
    b: str
    """The system whose RSum is subtracted."""
    rsum: float | None
    """RSum of `a` less RSum of `b`; None where it isn't known."""
    low: float | None
    """Lower end of the interval; None without one."""
    high: float | None
    """Upper end of the interval; None without one."""

    @property
    def outcome(self) -> Outcome:
        """`a` is ahead or behind, the interval includes 0 (open), or there is no interval (unknown)."""
        if self.rsum is None or self.low is None or self.high is None:
            return "unknown"
        if self.low > 0:
            return "ahead"
        return "behind" if self.high < 0 else "open"

    @property
    def sentence(self) -> str:
        """The difference in words.

        >>> Verdict("HADA", "B1", 8.21, 3.04, 13.5).sentence
        'HADA beats B1 by 8.2 points of RSum (interval 3.0 to 13.5).'
        >>> Verdict("HADA", "B1", 1.2, -0.4, 2.8).sentence
        'HADA and B1 are too close to call: the interval of the difference, +1.2, includes 0 (−0.4 to 2.8).'
        """
        interval = f"{fixed(self.low)} to {fixed(self.high)}"
        match self.outcome:
            case "ahead":
                return f"{self.a} beats {self.b} by {fixed(self.rsum)} points of RSum (interval {interval})."
            case "behind":
                points = fixed(-self.rsum) if self.rsum is not None else ""
                return f"{self.a} falls behind {self.b} by {points} points of RSum (interval {interval})."
            case "open":
                return (
                    f"{self.a} and {self.b} are too close to call: "
                    f"the interval of the difference, {signed(self.rsum)}, includes 0 ({interval})."
                )
        if self.rsum is None:
            return f"{self.a} and {self.b} weren't compared."
        return f"{self.a} differs from {self.b} by {signed(self.rsum)} points of RSum; no interval is known."


def verdicts(differences: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """The verdict on each difference: mappings with "a", "b", "rsum", "low" and "high"."""
    return [
        Verdict(str(each["a"]), str(each["b"]), *(_number(each.get(key)) for key in ("rsum", "low", "high")))
        for each in differences
    ]


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None
