"""HACAN's hierarchical inference: vectors first, then local similarities of fewer and fewer candidates.

The original's first stage takes the focal score of all pairs, which is nearly all the work there is; here it takes that
of the candidates that vectors find. `HierarchyConfig(focal_candidates=None)` is the original's.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.align.cross_layer import Levels, LocalConfig, Term
from modalloy.encoders import Level
from modalloy.errors import ConfigError, DataError
from modalloy.evaluation.ranks import DIRECTIONS, Direction
from modalloy.search.candidate_scores import ITEM_BLOCK, candidate_scores
from modalloy.search.hierarchy_config import HierarchyConfig
from modalloy.search.member import Member
from modalloy.search.token_source import TokenSource
from modalloy.search.top_k import top_k

QUERY_BLOCK = 1024
StageName = Literal["global", "focal", "cross-layer"]


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


class Compared(NamedTuple):
    """What one local branch compares."""

    queries: Levels
    """The queries' tokens."""
    items: TokenSource
    """Where those of the candidates come from."""
    local: LocalConfig
    """The branch that mapped both."""


class HierarchicalSearch:
    """Searches images by captions and captions by images, in stages.

    With several members (in HACAN's family a model of either direction of attention) each stage takes the mean of their
    scores, so that the candidates are those of the average. Each needs the tokens of every stage.

    Args:
        members: one encoder's images and captions, or the same ones by several encoders.
        query_block: queries answered together. A candidate's tokens are read once a block and stage.
        item_block: items whose tokens are in memory at once.

    Raises:
        ConfigError: there is no member, or a block isn't positive.
        DataError: the members have unequally many images, or captions.

    >>> from modalloy.align import Tokens
    >>> from modalloy.search.member import Side
    >>> from modalloy.search.token_source import HeldTokens
    >>> tokens = HeldTokens({"high": Tokens(torch.eye(3)[:, None], torch.ones(3, 1, dtype=torch.bool))})
    >>> side = Side(torch.eye(3), tokens)
    >>> search = HierarchicalSearch(Member(side, side, LocalConfig(3, None, 3, None, dim=3)))
    >>> found = search("text_to_image", HierarchyConfig(focal_candidates=2, cross_candidates=None))
    >>> [stage.name for stage in found], found[-1].candidates[:, 0]
    (['global', 'focal'], tensor([0, 1, 2]))
    """

    def __init__(self, *members: Member, query_block: int = QUERY_BLOCK, item_block: int = ITEM_BLOCK) -> None:
        if not members:
            raise ConfigError("a search needs at least one member, got none.")
        if query_block < 1 or item_block < 1:
            raise ConfigError(f"blocks must be at least 1, got query_block {query_block}, item_block {item_block}.")
        sizes = [(len(each.images.vectors), len(each.captions.vectors)) for each in members]
        if len(set(sizes)) > 1:
            raise DataError(f"members must be of the same items, got (images, captions) of {sizes}.")
        self.members = members
        # Side by side their inner product is the sum of the members'.
        self.image_vectors = torch.cat([each.images.vectors for each in members], dim=1)
        self.caption_vectors = torch.cat([each.captions.vectors for each in members], dim=1)
        self._query_block, self._item_block = query_block, item_block

    @torch.no_grad()
    def __call__(
        self, direction: Direction, config: HierarchyConfig, queries: Int[Tensor, "queries"] | None = None
    ) -> list[Stage]:
        """Takes items of one side as queries to all those of the other.

        With `focal_candidates=None` all pairs are scored, and the scores of all of them are returned.

        Args:
            direction: what the queries are: "image_to_text" or "text_to_image".
            config: how many candidates, and the weights.
            queries: places of the queries; by default all items of their side.

        Returns:
            The stages, the last with the final order. Each holds what it scored: the first two
            `config.focal_candidates`, the last `config.cross_candidates`.

        Raises:
            ConfigError: a side lacks a level of tokens that a stage's terms read, or there are no terms for the last
                stage; or the direction is another.
            DataError: a query's vector isn't finite.
        """
        if direction not in DIRECTIONS:
            raise ConfigError(f"direction must be image_to_text or text_to_image, got {direction!r}.")
        vectors, items, sides = self._oriented(direction)
        needed = [
            needed_levels(config, local.terms, direction, asked.levels, answering.levels)[0]
            for asked, answering, local in sides
        ]
        places = torch.arange(len(vectors)) if queries is None else queries
        if unusable := places[~vectors[places].isfinite().all(1)].tolist():
            raise DataError(f"the vector of query {unusable[0]} holds NaN or infinity, so nothing compares with it.")
        searchable = items.isfinite().all(1)
        blocks = []
        for block in places.split(self._query_block):
            start = time.perf_counter()
            scores, found = top_k(vectors[block], items, config.focal_candidates or len(items), searchable)
            first = Stage("global", found, scores / len(sides), time.perf_counter() - start)
            start = time.perf_counter()
            compared = [
                Compared(asked.read(block, levels), answering, local)
                for (asked, answering, local), levels in zip(sides, needed, strict=True)
            ]
            reading = time.perf_counter() - start
            focal, *last = refine(compared, first, direction, config, self._item_block)
            blocks.append([first, replace(focal, seconds=focal.seconds + reading), *last])
        return [_joined(stages) for stages in zip(*blocks, strict=True)]

    def _oriented(
        self, direction: Direction
    ) -> tuple[
        Float[Tensor, "queries dim"], Float[Tensor, "items dim"], list[tuple[TokenSource, TokenSource, LocalConfig]]
    ]:
        """Vectors of queries and items, and each member's tokens of them."""
        if direction == "image_to_text":
            sides = [(each.images.tokens, each.captions.tokens, each.local) for each in self.members]
            return self.image_vectors, self.caption_vectors, sides
        sides = [(each.captions.tokens, each.images.tokens, each.local) for each in self.members]
        return self.caption_vectors, self.image_vectors, sides


def refine(
    compared: Sequence[Compared],
    found: Stage,
    direction: Direction,
    config: HierarchyConfig,
    item_block: int = ITEM_BLOCK,
) -> Iterator[Stage]:
    """The stages after the first, of candidates that any index found; one whose tokens aren't finite leaves a place.

    Args:
        compared: the tokens of the queries and of the items, by one local branch or several, whose mean counts.
        found: the candidates and their global scores.
        direction: what the queries are.
        config: how many candidates the last stage gets, and the weights; `focal_candidates` has no part.
        item_block: items whose tokens are in memory at once.

    Raises:
        ConfigError: see `needed_levels`.
        DataError: a candidate doesn't exist.
    """
    for each in compared:
        needed_levels(config, each.local.terms, direction, frozenset(each.queries), each.items.levels)
    start = time.perf_counter()
    local = _local_scores(compared, found.candidates, direction, True, item_block)
    scores = config.global_weight * found.scores + config.focal_weight * local
    # Its weight may be 0, and 0 times -inf is no number.
    scores = scores.masked_fill(found.candidates < 0, -torch.inf)
    focal = _sorted("focal", found.candidates, scores, start)
    yield focal
    if config.cross_candidates is None:
        return
    start = time.perf_counter()
    candidates = focal.candidates[:, : config.cross_candidates]
    local = _local_scores(compared, candidates, direction, False, item_block)
    scores = focal.scores[:, : config.cross_candidates] + config.cross_weight * local
    yield _sorted("cross-layer", candidates, scores, start)


def _local_scores(
    compared: Sequence[Compared],
    candidates: Int[Tensor, "queries candidates"],
    direction: Direction,
    focal: bool,
    item_block: int,
) -> Float[Tensor, "queries candidates"]:
    """The mean of the branches' scores by the terms of the focal stage, or of the last."""
    scores = []
    for queries, items, local in compared:
        terms = [term for term in local.terms if term.focal == focal]
        scores.append(candidate_scores(queries, items, candidates, direction, local.attention, terms, item_block))
    return torch.stack(scores).mean(0)


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
        ConfigError: one that is read isn't there, or there are no terms for the last stage.
    """
    used = [term for term in terms if term.focal or config.cross_candidates is not None]
    if config.cross_candidates is not None and all(term.focal for term in used):
        raise ConfigError(
            "there are no cross-layer terms to re-rank by, which need a mid level: set cross_candidates to None."
        )
    images, captions = frozenset(term.image for term in used), frozenset(term.text for term in used)
    needed = (images, captions) if direction == "image_to_text" else (captions, images)
    for name, has, needs in zip(("queries", "items"), (queries, items), needed, strict=True):
        if needs - has:
            raise ConfigError(
                f"the {name} have tokens of the levels {sorted(has)}, but these stages need {sorted(needs)}; "
                "store the others, or set cross_candidates to None to leave the cross-layer stage out."
            )
    return needed


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
