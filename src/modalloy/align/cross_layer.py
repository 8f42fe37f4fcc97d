"""HACAN's cross-layer similarity: local similarities between the levels of two backbones, added up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from modalloy.align.cross_attention import FOCAL_PROB, CrossAttention
from modalloy.align.local_similarity import Tokens, candidate_similarity, local_similarity
from modalloy.encoders import Level, Modality
from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.ranks import Direction
from modalloy.features import pad

Levels = Mapping[Level, Tokens]
"""An item batch's tokens of each level; a level that no term reads may be left out."""


@dataclass(frozen=True)
class Term:
    """One of the similarities that a cross-layer score adds up."""

    image: Level
    """The images' level."""
    text: Level
    """The captions' level."""
    focal: bool = False
    """Whether its attention is focal, as the branch's attention says; otherwise all weights stay."""


FOCAL = (Term("high", "high", focal=True),)
"""The second stage of HACAN's hierarchical inference."""
CROSS = (Term("high", "mid"), Term("mid", "high"))
"""What the third stage adds to the second."""
CROSS_LAYER = FOCAL + CROSS
"""HACAN's whole score."""


def cross_layer_similarity(
    images: Levels,
    captions: Levels,
    attention: CrossAttention = FOCAL_PROB,
    terms: Sequence[Term] = CROSS_LAYER,
    *,
    block: int | None = None,
) -> Float[Tensor, "images captions"]:
    """Scores every image with every caption: focal(high, high) + SCAN(high, mid) + SCAN(mid, high).

    Args:
        images: tokens of the images' levels.
        captions: tokens of the captions' levels, all of one width.
        attention: of all terms; its focus is that of focal terms alone.
        terms: what is added up.
        block: how many pairs are held at once.

    Raises:
        DataError: a level is missing, or widths differ.
        ConfigError: there is no term, or `block` isn't positive.

    >>> import torch
    >>> one = Tokens(torch.eye(3)[None], torch.ones(1, 3, dtype=torch.bool))
    >>> cross_layer_similarity({"high": one, "mid": one}, {"high": one, "mid": one}).round(decimals=4)
    tensor([[3.]])
    """
    return _sum(
        lambda image, text, how: local_similarity(image, text, how, block=block), images, captions, attention, terms
    )


def candidate_cross_layer_similarity(
    images: Levels,
    captions: Levels,
    candidates: Int[Tensor, "queries candidates"],
    direction: Direction,
    attention: CrossAttention = FOCAL_PROB,
    terms: Sequence[Term] = CROSS_LAYER,
    *,
    block: int | None = None,
) -> Float[Tensor, "queries candidates"]:
    """Scores each query with its own candidates, as `cross_layer_similarity` does.

    Arguments as for `candidate_similarity` and `cross_layer_similarity`. With `terms=FOCAL` it is the second stage
    of HACAN's hierarchical inference, and with `terms=CROSS` what the third adds.
    """
    return _sum(
        lambda image, text, how: candidate_similarity(image, text, candidates, direction, how, block=block),
        images,
        captions,
        attention,
        terms,
    )


def _sum(
    score: Callable[[Tokens, Tokens, CrossAttention], Tensor],
    images: Levels,
    captions: Levels,
    attention: CrossAttention,
    terms: Sequence[Term],
) -> Tensor:
    if not terms:
        raise ConfigError("a cross-layer score needs at least one term")
    plain = replace(attention, focal=None)
    total: Tensor | None = None
    for term in terms:
        how = attention if term.focal else plain
        part = score(_level(images, term.image, "image"), _level(captions, term.text, "text"), how)
        total = part if total is None else total + part
    assert total is not None
    return total


def _level(levels: Levels, level: Level, modality: Modality) -> Tokens:
    if level not in levels:
        raise DataError(f"the {modality}s have no tokens of the level {level!r}, only of {sorted(levels)}")
    return levels[level]


def compared_levels(
    modality: Modality,
    features: Mapping[Level, tuple[Float[Tensor, "items tokens width"], Bool[Tensor, "items tokens"]]],
) -> dict[Level, Tokens]:
    """What the local branch compares of a backbone's padded tokens of each level, whose first is the summary.

    As in HACAN an image's are the regions alone, while a caption's begin with CLS.

    >>> import torch
    >>> image = torch.randn(2, 50, 8), torch.ones(2, 50, dtype=torch.bool)
    >>> compared_levels("image", {"high": image})["high"].values.shape
    torch.Size([2, 49, 8])
    """
    first = 1 if modality == "image" else 0
    return {level: Tokens(values[:, first:], mask[:, first:]) for level, (values, mask) in features.items()}


def compared_packed(
    modality: Modality, features: Mapping[Level, tuple[Float[Tensor, "packed width"], Int[Tensor, "items"]]]
) -> dict[Level, Tokens]:
    """`compared_levels` of packed tokens and their lengths, as stores and encoders give them.

    >>> import torch
    >>> compared_packed("image", {"high": (torch.randn(7, 8), torch.tensor([3, 4]))})["high"].mask.sum(1)
    tensor([2, 3])
    """
    return compared_levels(modality, {level: pad(*packed) for level, packed in features.items()})


@dataclass(frozen=True)
class LocalConfig:
    """Shape of a local branch; HACAN's own, on ConvNeXt-base and BERT-base, is:

    >>> LocalConfig(image_high=1024, image_mid=512, text_high=768, text_mid=768).dim
    768
    """

    image_high: int
    """Width of the images' last tokens."""
    image_mid: int | None
    """Width of the images' earlier tokens; None where there are none, so that no term reads them."""
    text_high: int
    """Width of the captions' last tokens."""
    text_mid: int | None
    """Width of the captions' earlier tokens, or None."""
    dim: int = 768
    """Width that all are mapped to."""
    attention: CrossAttention = FOCAL_PROB
    """How tokens attend to each other."""

    def __post_init__(self) -> None:
        for name in ("image_high", "image_mid", "text_high", "text_mid", "dim"):
            width = getattr(self, name)
            if width is not None and width < 1:
                raise ConfigError(f"{name} must be at least 1, got {width}.")

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms of `CROSS_LAYER` whose levels there are."""
        return tuple(
            term
            for term in CROSS_LAYER
            if getattr(self, f"image_{term.image}") is not None and getattr(self, f"text_{term.text}") is not None
        )

    @property
    def crosses(self) -> bool:
        """Whether some of them are across levels, so that there can be a cross-layer stage."""
        return not all(term.focal for term in self.terms)


class LocalBranch(nn.Module):
    """HACAN's local branch: a linear map of each level into one space, and cross-layer scores there.

    Its parameters have the names that `interop.hacan_weights` gives those of a HACAN checkpoint.

    Args:
        config: widths, and how tokens attend to each other.

    >>> import torch
    >>> branch = LocalBranch(LocalConfig(4, 3, 5, 5, dim=6))
    >>> def tokens(*shape): return Tokens(torch.randn(shape), torch.ones(shape[:2], dtype=torch.bool))
    >>> images = {"high": tokens(2, 7, 4), "mid": tokens(2, 9, 3)}
    >>> branch(images, {"high": tokens(3, 6, 5), "mid": tokens(3, 6, 5)}).shape
    torch.Size([2, 3])
    """

    def __init__(self, config: LocalConfig) -> None:
        super().__init__()
        self.config = config
        self.image_high = nn.Linear(config.image_high, config.dim)
        self.image_mid = None if config.image_mid is None else nn.Linear(config.image_mid, config.dim)
        self.text_high = nn.Linear(config.text_high, config.dim)
        self.text_mid = None if config.text_mid is None else nn.Linear(config.text_mid, config.dim)

    def project(self, modality: Modality, levels: Levels) -> dict[Level, Tokens]:
        """Maps a backbone's tokens into the shared space; once per item, however many it is scored with.

        Raises:
            DataError: the branch has no map of a level.
        """
        projected: dict[Level, Tokens] = {}
        for level, tokens in levels.items():
            projected[level] = Tokens(self.map_of(modality, level)(tokens.values), tokens.mask)
        return projected

    def map_of(self, modality: Modality, level: Level) -> nn.Linear:
        """What maps the tokens of a level into the shared space.

        Raises:
            DataError: the branch has none.
        """
        linear: nn.Linear | None = getattr(self, f"{modality}_{level}")
        if linear is None:
            raise DataError(f"the local branch was made without the {modality}s' level {level!r}; leave it out")
        return linear

    def project_packed(
        self,
        modality: Modality,
        levels: Mapping[Level, tuple[Float[Tensor, "packed width"], Int[Tensor, "items"]]],
    ) -> dict[Level, Tokens]:
        """`project` of what stores give: packed tokens and their lengths, of which `compared_levels` are mapped.

        Raises:
            DataError: the branch has no map of a level.
        """
        weight = self.image_high.weight
        here = {level: (packed.to(weight.device, weight.dtype), lengths) for level, (packed, lengths) in levels.items()}
        return self.project(modality, compared_packed(modality, here))

    def forward(
        self, images: Levels, captions: Levels, *, block: int | None = None
    ) -> Float[Tensor, "images captions"]:
        """Cross-layer scores of every image with every caption, from the backbones' tokens."""
        projected = self.project("image", images), self.project("text", captions)
        return cross_layer_similarity(*projected, self.config.attention, self.config.terms, block=block)
