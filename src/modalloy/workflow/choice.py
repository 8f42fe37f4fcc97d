"""How `modalloy fuse --method auto` decided: every rung of its ladder, the comparison, and the verdict in words."""

from dataclasses import asdict, dataclass
from typing import Any

from modalloy.evaluation import Difference
from modalloy.workflow.regime import Regime

SMALLEST_HALF = 30


@dataclass(frozen=True)
class Rung:
    """One system of the ladder."""

    name: str
    """What it is."""
    trained: bool
    """Whether it was trained, rather than made of the inputs alone."""
    choosing: float
    """RSum on the items that chose its epoch, its weights and the candidate."""
    judging: float | None = None
    """RSum on the other half; None if there was nothing to judge by."""
    difference: Difference | None = None
    """RSum on the other half minus the simple system's there."""


@dataclass(frozen=True)
class Choice:
    """The decision between one trained candidate and the simplest system that does without training."""

    chosen: str
    """The system returned."""
    simple: str
    """The best input or the tuned weighted cosine, whichever was better on the choosing half."""
    candidate: str | None
    """The trained system that was best on the choosing half; None if nothing was trained."""
    rungs: tuple[Rung, ...]
    """The ladder."""
    images: tuple[int, int]
    """Validation images in the choosing and the judging half."""
    captions: tuple[int, int]
    """Their captions."""
    regime: Regime
    """Whether the inputs know the training pairs."""
    weights: dict[str, float]
    """What the chosen system's similarity weighs, where weights were sought; sought anew on all validation items."""

    @property
    def enough(self) -> bool:
        """Whether the halves were large enough to judge by."""
        return min(self.images) >= SMALLEST_HALF

    def sentence(self) -> str:
        """The verdict with its numbers, for people."""
        if not self.enough:
            smaller = self.images.index(min(self.images))
            return (
                f"{self.chosen} is returned, and nothing was trained: half of the validation part has only "
                f"{self.images[smaller]} images and {self.captions[smaller]} captions, and to judge a trained fusion "
                f"takes {SMALLEST_HALF} images."
            )
        rung = next(each for each in self.rungs if each.name == self.candidate)
        assert rung.difference is not None
        numbers = (
            f"{rung.difference.value:+.1f} [{rung.difference.low:+.1f}, {rung.difference.high:+.1f}] RSum against "
            f"{self.simple} on {self.images[1]:,} validation images that chose nothing"
        )
        if self.chosen == self.candidate:
            verdict = f"{self.chosen} is returned, since it is surely better than what needs no training: {numbers}."
        else:
            verdict = f"{self.chosen} is returned, since nothing trained is surely better: {rung.name} has {numbers}."
        return f"{verdict} Its weights were sought anew on the whole validation part." if self.weights else verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the sentence."""
        halves = [
            {"images": images, "captions": captions}
            for images, captions in zip(self.images, self.captions, strict=True)
        ]
        return {
            "chosen": self.chosen,
            "sentence": self.sentence(),
            "simple": self.simple,
            "candidate": self.candidate,
            "weights": self.weights,
            "choosing": halves[0],
            "judging": halves[1],
            "rungs": [asdict(rung) for rung in self.rungs],
            "regime": self.regime.to_dict(),
        }
