"""Exact search by vectors, and hierarchical search: the local similarity of what vectors find."""

from modalloy.search.build import build_gallery
from modalloy.search.depth import Fold
from modalloy.search.depths import DepthLadder, choose_depths
from modalloy.search.gallery import Entry, Gallery, Hit
from modalloy.search.hierarchical import HierarchicalSearch
from modalloy.search.hierarchy_config import HierarchyConfig
from modalloy.search.local_reranker import LocalReranker
from modalloy.search.member import Member, Side
from modalloy.search.searcher import GALLERY, Searcher
from modalloy.search.token_source import HeldTokens, StoredTokens, TokenSource

__all__ = [
    "GALLERY",
    "DepthLadder",
    "Entry",
    "Fold",
    "Gallery",
    "HeldTokens",
    "HierarchicalSearch",
    "HierarchyConfig",
    "Hit",
    "LocalReranker",
    "Member",
    "Searcher",
    "Side",
    "StoredTokens",
    "TokenSource",
    "build_gallery",
    "choose_depths",
]
