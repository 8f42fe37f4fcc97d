"""HACAN's hierarchical inference: vectors first, then local similarities of fewer and fewer candidates.

The original's first stage takes the focal score of all pairs, which is nearly all the work there is; here it takes that
of the candidates that vectors find. `HierarchyConfig(first=None)` is the original's.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.align.cross_attention import FOCAL_PROB, CrossAttention
from modalloy.align.cross_layer import CROSS_LAYER, Level, Levels, Term
from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.ranks import Direction
from modalloy.search.candidate_scores import ITEM_BLOCK, candidate_scores
from modalloy.search.token_source import TokenSource
from modalloy.search.top_k import top_k

QUERY_BLOCK = 1024
StageName = Literal["global", "focal", "cross-layer"]


@dataclass(frozen=True)
class HierarchyConfig:
    """How many candidates each stage gets, and what its scores count.

    >>> HierarchyConfig(first=50, second=20).global_weight
    0.2
    """

    first: int | None = 100
    """Candidates that vectors find for the focal stage; None: all items, the original's costly first stage."""
    second: int | None = 20
    """Candidates that the focal stage leaves for the cross-layer stage; None: there is no such stage."""
    global_weight: float = 0.2
    """Weight of the vectors' inner product."""
    focal_weight: float = 0.8
    """Weight of the focal score."""
    cross_weight: float = 1.0
    """Weight of the cross-layer terms, which the last stage adds."""

    def __post_init__(self) -> None:
        for name in ("first", "second"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ConfigError(f"{name} must be at least 1 candidate, or None, got {count}.")
        if self.first is not None and self.second is not None and self.second > self.first:
            raise ConfigError(f"second must be at most first, {self.first}, got {self.second}.")
        if not 0 <= self.global_weight < torch.inf:
            raise ConfigError(f"global_weight must be 0 or more, got {self.global_weight}.")
        for name in ("focal_weight", "cross_weight"):
            if not 0 < getattr(self, name) < torch.inf:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}.")


@dataclass(frozen=True, eq=False)
class Stage:
    """The candidates of each query after a stage, best first; of equal scores the earlier stage's order stays."""

    name: StageName
    """What it scored by."""
    candidates: Int[Tensor, "queries candidates"]
    """Places of the items; -1 where there is none."""
    scores: Float[Tensor, "queries candidates"]
    """Their scores, -inf where there is none."""
    seconds: float
    """How long this stage took for all queries."""


@dataclass(frozen=True, eq=False)
class Side:
    """All images, or all captions.

    Raises:
        DataError: there isn't one vector for each item's tokens.
    """

    vectors: Float[Tensor, "items dim"]
    """Global vectors; a row that isn't finite stands for an item without one, which is never found."""
    tokens: TokenSource
    """Their tokens, in the same order."""

    def __post_init__(self) -> None:
        if len(self.vectors) != len(self.tokens):
            raise DataError(f"got {len(self.vectors)} vectors for the tokens of {len(self.tokens)} items.")
        object.__setattr__(self, "vectors", self.vectors.detach().cpu().float())


class HierarchicalSearch:
    """Searches images by captions and captions by images, in stages.

    Args:
        images: their vectors and tokens.
        captions: theirs, of the same widths.
        attention: how tokens attend to each other; a local branch's is `branch.config.attention`.
        terms: what the whole score adds up, the focal terms first; a local branch's are `branch.config.terms`.
        query_block: queries answered together. A candidate's tokens are read once a block and stage.
        item_block: items whose tokens are in memory at once.

    Raises:
        ConfigError: a block isn't positive.

    >>> from modalloy.align import Tokens
    >>> from modalloy.search.token_source import HeldTokens
    >>> tokens = HeldTokens({"high": Tokens(torch.eye(3)[:, None], torch.ones(3, 1, dtype=torch.bool))})
    >>> search = HierarchicalSearch(Side(torch.eye(3), tokens), Side(torch.eye(3), tokens))
    >>> found = search("text_to_image", HierarchyConfig(first=2, second=None))
    >>> [stage.name for stage in found], found[-1].candidates[:, 0]
    (['global', 'focal'], tensor([0, 1, 2]))
    """

    def __init__(
        self,
        images: Side,
        captions: Side,
        attention: CrossAttention = FOCAL_PROB,
        terms: Sequence[Term] = CROSS_LAYER,
        *,
        query_block: int = QUERY_BLOCK,
        item_block: int = ITEM_BLOCK,
    ) -> None:
        if query_block < 1 or item_block < 1:
            raise ConfigError(f"blocks must be at least 1, got query_block {query_block}, item_block {item_block}.")
        self.images, self.captions, self.attention, self.terms = images, captions, attention, tuple(terms)
        self._query_block, self._item_block = query_block, item_block

    @torch.no_grad()
    def __call__(self, direction: Direction, config: HierarchyConfig) -> list[Stage]:
        """Takes all items of one side as queries to those of the other.

        With `first=None` all pairs are scored, and the scores of all of them are returned.

        Args:
            direction: what the queries are: "image_to_text" or "text_to_image".
            config: how many candidates, and the weights.

        Returns:
            The stages, the last with the final order. Each holds what it scored: the first two `config.first`
            candidates, the last `config.second`.

        Raises:
            ConfigError: a side lacks a level of tokens that a stage's terms read, or there are no terms for the last
                stage; or the direction is another.
            DataError: a query's vector isn't finite.
        """
        sides = {"image_to_text": (self.images, self.captions), "text_to_image": (self.captions, self.images)}
        if direction not in sides:
            raise ConfigError(f"direction must be image_to_text or text_to_image, got {direction!r}.")
        queries, items = sides[direction]
        needed, _ = needed_levels(config, self.terms, direction, queries.tokens.levels, items.tokens.levels)
        unusable = (~queries.vectors.isfinite().all(1)).nonzero().flatten().tolist()
        if unusable:
            raise DataError(f"the vector of query {unusable[0]} holds NaN or infinity, so nothing compares with it.")
        searchable = items.vectors.isfinite().all(1)
        blocks = []
        for block in torch.arange(len(queries.vectors)).split(self._query_block):
            start = time.perf_counter()
            scores, found = top_k(queries.vectors[block], items.vectors, config.first or len(searchable), searchable)
            first = Stage("global", found, scores, time.perf_counter() - start)
            start = time.perf_counter()
            levels = queries.tokens.read(block, needed)
            reading = time.perf_counter() - start
            focal, *last = refine(
                levels, items.tokens, first, direction, config, self.attention, self.terms, self._item_block
            )
            blocks.append([first, replace(focal, seconds=focal.seconds + reading), *last])
        return [_joined(stages) for stages in zip(*blocks, strict=True)]


def refine(
    queries: Levels,
    items: TokenSource,
    found: Stage,
    direction: Direction,
    config: HierarchyConfig,
    attention: CrossAttention = FOCAL_PROB,
    terms: Sequence[Term] = CROSS_LAYER,
    item_block: int = ITEM_BLOCK,
) -> Iterator[Stage]:
    """The stages after the first, of candidates that any index found; one whose tokens aren't finite leaves a place.

    Args:
        queries: the queries' tokens, mapped by the local branch.
        items: where those of the candidates come from.
        found: the candidates and their global scores.
        direction: what the queries are.
        config: how many candidates the last stage gets, and the weights; `first` has no part.
        attention: how tokens attend to each other.
        terms: what the whole score adds up; the focal ones make the second stage, the others the last.
        item_block: items whose tokens are in memory at once.

    Raises:
        ConfigError: see `needed_levels`.
        DataError: a candidate doesn't exist.
    """
    needed_levels(config, terms, direction, frozenset(queries), items.levels)
    focal_terms, cross_terms = _by_stage(terms)
    start = time.perf_counter()
    local = candidate_scores(queries, items, found.candidates, direction, attention, focal_terms, item_block)
    scores = config.global_weight * found.scores + config.focal_weight * local
    # Its weight may be 0, and 0 times -inf is no number.
    scores = scores.masked_fill(found.candidates < 0, -torch.inf)
    focal = _sorted("focal", found.candidates, scores, start)
    yield focal
    if config.second is None:
        return
    start = time.perf_counter()
    candidates = focal.candidates[:, : config.second]
    local = candidate_scores(queries, items, candidates, direction, attention, cross_terms, item_block)
    scores = focal.scores[:, : config.second] + config.cross_weight * local
    yield _sorted("cross-layer", candidates, scores, start)


def needed_levels(
    config: HierarchyConfig,
    terms: Sequence[Term],
    direction: Direction,
    queries: frozenset[Level],
    items: frozenset[Level],
) -> tuple[frozenset[Level], frozenset[Level]]:
    """The levels of tokens that the stages read, of the queries and of the items.

    Args:
        config: whether there is a last stage.
        terms: what the whole score adds up.
        direction: what the queries are.
        queries: the levels that the queries have.
        items: the levels that the items have.

    Raises:
        ConfigError: one that is read isn't there, or there are no terms for a stage.
    """
    focal, cross = _by_stage(terms)
    if not focal or (config.second is not None and not cross):
        raise ConfigError(
            "there are no cross-layer terms to re-rank by, which need a mid level: set second to None."
            if focal
            else "there is no focal term to re-rank by."
        )
    used = focal if config.second is None else [*focal, *cross]
    images, captions = frozenset(term.image for term in used), frozenset(term.text for term in used)
    needed = (images, captions) if direction == "image_to_text" else (captions, images)
    for name, has, needs in zip(("queries", "items"), (queries, items), needed, strict=True):
        if needs - has:
            raise ConfigError(
                f"the {name} have tokens of the levels {sorted(has)}, but these stages need {sorted(needs)}; "
                "store the others, or set second to None to leave the cross-layer stage out."
            )
    return needed


def _by_stage(terms: Sequence[Term]) -> tuple[list[Term], list[Term]]:
    """The terms of the focal stage, and those of the last."""
    return [term for term in terms if term.focal], [term for term in terms if not term.focal]


def _sorted(
    name: StageName,
    candidates: Int[Tensor, "queries candidates"],
    scores: Float[Tensor, "queries candidates"],
    start: float,
) -> Stage:
    # NaN would come first: an item whose tokens aren't finite isn't found, like one without a vector.
    unusable = ~scores.isfinite()
    scores, candidates = scores.masked_fill(unusable, -torch.inf), candidates.masked_fill(unusable, -1)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return Stage(name, candidates.gather(1, order), scores.gather(1, order), time.perf_counter() - start)


def _joined(stages: tuple[Stage, ...]) -> Stage:
    return Stage(
        stages[0].name,
        torch.cat([stage.candidates for stage in stages]),
        torch.cat([stage.scores for stage in stages]),
        sum(stage.seconds for stage in stages),
    )
