"""How the authors of some models rewrote captions before their tokenizers saw them.

The tokenizers that they published don't do this, so that without it a model is fed texts unlike its training's.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class CaptionRule:
    """Lower-cases a caption, replaces parts of it, and cuts it to a number of words.

    >>> BLIP_CAPTIONS('A dog (brown) runs!')
    'a dog brown runs'
    >>> ALBEF_CAPTIONS("A well-known dog's ball.")
    'a well known dogs ball'
    """

    replacements: tuple[tuple[str, str], ...] = ()
    """Regular expressions and what stands in for their matches, applied in this order after lower-casing."""
    words: int | None = None
    """Words kept, where a word is what stands between single spaces."""

    def __call__(self, caption: str) -> str:
        """The rewritten caption, which may be blank."""
        caption = caption.lower()
        for pattern, text in self.replacements:
            caption = re.sub(pattern, text, caption)
        if self.words is None:
            return caption
        return " ".join(caption.strip().split(" ")[: self.words])

    def settings(self) -> dict[str, Any]:
        """The rule, for a fingerprint."""
        return asdict(self)


LOWERCASE = CaptionRule()
# In the authors' code this is `pre_caption` with its default of 30 words; the two aren't alike.
ALBEF_CAPTIONS = CaptionRule(
    ((r"""[,.'!?"()*#:;~]""", ""), (r"[-/]", " "), (r"<person>", "person"), (r"\s{2,}", " ")), words=30
)
BLIP_CAPTIONS = CaptionRule(((r"""[.!"()*#:;~]""", " "), (r"\s{2,}", " ")), words=30)
# Chinese BERT's vocabulary lacks curly quotes.
CHINESE_CLIP_CAPTIONS = CaptionRule((("[“”]", '"'),))
