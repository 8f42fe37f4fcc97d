"""Answers from an index, and hierarchical search: the local similarity of what vectors find."""

from modalloy.search.depth import Fold
from modalloy.search.depths import DepthLadder, choose_depths
from modalloy.search.hierarchical import HierarchicalSearch
from modalloy.search.hierarchy_config import HierarchyConfig
from modalloy.search.hit import Answer, Hit
from modalloy.search.local_reranker import LocalReranker
from modalloy.search.local_scores import LocalScores
from modalloy.search.member import Member, Side
from modalloy.search.query import Part, Query
from modalloy.search.rerank import Reranker
from modalloy.search.searcher import INDEX, Searcher
from modalloy.search.token_source import HeldTokens, StoredTokens, TokenSource
from modalloy.search.view import View

__all__ = [
    "INDEX",
    "Answer",
    "DepthLadder",
    "Fold",
    "HeldTokens",
    "HierarchicalSearch",
    "HierarchyConfig",
    "Hit",
    "LocalReranker",
    "LocalScores",
    "Member",
    "Part",
    "Query",
    "Reranker",
    "Searcher",
    "Side",
    "StoredTokens",
    "TokenSource",
    "View",
    "choose_depths",
]
