"""What is asked for: parts in words, pictures or items of the index, and what the answers must be."""

import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from modalloy.encoders import Modality
from modalloy.encoders.base import require_text
from modalloy.errors import ConfigError
from modalloy.index import Condition


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """One part of a question: exactly one of a text, a picture, and an item of the index.

    >>> Part(text="a red telephone").weight
    1.0

    Raises:
        ConfigError: there isn't exactly one of them, or the weight is zero or not finite.
        DataError: the text is blank, or no text.
    """

    text: str | None = None
    """Words."""
    image: Image.Image | str | Path | None = None
    """A picture in RGB, or the file of one."""
    like: str | None = None
    """The id of a picture or caption in the index, whose own vector is taken; it isn't among the answers."""
    weight: float = 1.0
    """How much it counts beside other parts; a negative weight pushes away."""

    def __post_init__(self) -> None:
        given = [name for name in ("text", "image", "like") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                "a part of a question is one of a text, an image and an id to be like, got "
                f"{' and '.join(given) or 'none'}."
            )
        if not math.isfinite(self.weight) or self.weight == 0:
            raise ConfigError(f"the weight of a part must be a number other than 0, got {self.weight}.")
        if self.text is not None:
            require_text(self.text)

    @property
    def label(self) -> str:
        """The part in few words, for people."""
        if self.text is not None:
            return self.text
        if self.like is not None:
            return f"like {self.like}"
        return "picture" if isinstance(self.image, Image.Image) else str(self.image)


@dataclass(frozen=True, eq=False, slots=True)
class Query:
    """A question to an index.

    >>> Query((Part(text="a cat"), Part(text="indoors", weight=-0.5)), k=5).target
    'image'

    Raises:
        ConfigError: there is no part, or an option can't work.
    """

    parts: tuple[Part, ...]
    """What the answers should be like, weighed against each other in units of each part's own spread of scores."""
    target: Modality = "image"
    """What to find."""
    k: int = 10
    """How many."""
    where: tuple[Condition, ...] = ()
    """Conditions that all must hold."""
    rerank: str | None = None
    """The second stage that puts the best answers in order again, such as "local" or "itm"."""
    rerank_depth: int = 20
    """How many of the best answers it looks at."""
    explain: bool = False
    """Whether to say what each encoder, and each part, contributed to each score."""
    exact: bool = False
    """Whether to look at every vector, however many there are."""
    by: str | None = None
    """The one input encoder to rank by, instead of by all of the vector."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("a question needs at least one part: a text, a picture, or an id to be like.")
        for name in ("k", "rerank_depth"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.by is not None and (self.rerank or self.explain):
            raise ConfigError(f"by {self.by!r} ranks by one input alone; leave out rerank and explain.")
