"""HACAN's local similarity as a second stage behind any index."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from modalloy.align.cross_layer import Levels, LocalConfig
from modalloy.errors import DataError
from modalloy.evaluation.ranks import Direction
from modalloy.search.candidate_scores import ITEM_BLOCK
from modalloy.search.hierarchical import Compared, Stage, refine
from modalloy.search.hierarchy_config import HierarchyConfig
from modalloy.search.hit import Hit
from modalloy.search.token_source import TokenSource


class LocalReranker:
    """Puts what an index found in the order of HACAN's local score, from stored tokens.

    Args:
        items: tokens of the images or captions that the index holds.
        ids: their ids, in the same order.
        direction: what the queries are.
        config: weights, and how many hits the cross-layer stage gets; all that the index found get the focal stage.
        local: of the local branch that maps the tokens, `branch.config`.

    Raises:
        DataError: there isn't one id for each item, or an id repeats.

    >>> from modalloy.align import Tokens
    >>> from modalloy.search.token_source import HeldTokens
    >>> words = lambda rows: {"high": Tokens(torch.eye(2)[rows, None], torch.ones(len(rows), 1, dtype=torch.bool))}
    >>> images, local = HeldTokens(words([0, 1])), LocalConfig(2, None, 2, None, dim=2)
    >>> config = HierarchyConfig(cross_candidates=None)
    >>> reranker = LocalReranker(images, ["cat.png", "dog.png"], "text_to_image", config, local)
    >>> hits = [Hit("cat.png", 0.6), Hit("dog.png", 0.5)]
    >>> [hit.id for hit in reranker(words([1]), [hits])[0]]
    ['dog.png', 'cat.png']
    """

    def __init__(
        self,
        items: TokenSource,
        ids: Sequence[str],
        direction: Direction,
        config: HierarchyConfig,
        local: LocalConfig,
        *,
        item_block: int = ITEM_BLOCK,
    ) -> None:
        if len(ids) != len(items):
            raise DataError(f"got {len(ids)} ids for the tokens of {len(items)} items.")
        self._items, self._direction, self._config = items, direction, config
        self._local, self._item_block = local, item_block
        self._place = {id: place for place, id in enumerate(ids)}
        if len(self._place) < len(ids):
            raise DataError(f"ids must be unique, got {len(ids)} of which {len(self._place)} are different.")

    def __call__(self, queries: Levels, found: Sequence[Sequence[Hit]]) -> list[list[Hit]]:
        """Scores the hits of each query, and gives them best first; with a cross-layer stage those that reach it.

        Args:
            queries: the queries' tokens, mapped by the local branch.
            found: what an index found for each query. A hit's score is the global part
                of its new one: an inner product, or whatever `config.global_weight` suits.

        Raises:
            ConfigError: a cross-layer stage is wanted, but there are no mid-level tokens.
            DataError: a hit has no tokens here, or there isn't a list of hits for each query.
        """
        sizes = {len(tokens) for tokens in queries.values()}
        if sizes != {len(found)}:
            raise DataError(f"got hits for {len(found)} queries, but tokens of {sorted(sizes)}.")
        unknown = [hit.id for hits in found for hit in hits if hit.id not in self._place]
        if unknown:
            raise DataError(f"{len(unknown)} hits have no tokens here, the first is {unknown[0]!r}; store them first.")
        shape = len(found), max(map(len, found), default=0)
        candidates, scores = torch.full(shape, -1), torch.full(shape, -torch.inf)
        for query, hits in enumerate(found):
            candidates[query, : len(hits)] = torch.tensor([self._place[hit.id] for hit in hits], dtype=torch.long)
            scores[query, : len(hits)] = torch.tensor([hit.score for hit in hits])
        first = Stage("global", candidates, scores, 0.0)
        compared = Compared(queries, self._items, self._local)
        *_, last = refine([compared], first, self._direction, self._config, self._item_block)
        rows = zip(found, last.candidates.tolist(), last.scores.tolist(), strict=True)
        return [self._scored(*row) for row in rows]

    def _scored(self, hits: Sequence[Hit], places: list[int], scores: list[float]) -> list[Hit]:
        by_place = {self._place[hit.id]: hit for hit in hits}
        return [
            replace(by_place[place], score=score) for place, score in zip(places, scores, strict=True) if place >= 0
        ]
