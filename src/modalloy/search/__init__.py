"""Answers from an index, and hierarchical search: the local similarity of what vectors find."""

from modalloy.search.build import build_gallery
from modalloy.search.depth import Fold
from modalloy.search.depths import DepthLadder, choose_depths
from modalloy.search.gallery import Entry, Gallery
from modalloy.search.gallery_searcher import GALLERY, GallerySearcher
from modalloy.search.hierarchical import HierarchicalSearch
from modalloy.search.hierarchy_config import HierarchyConfig
from modalloy.search.hit import Answer, Hit
from modalloy.search.local_reranker import LocalReranker
from modalloy.search.member import Member, Side
from modalloy.search.query import Part, Query
from modalloy.search.searcher import INDEX, Searcher
from modalloy.search.token_source import HeldTokens, StoredTokens, TokenSource
from modalloy.search.view import View

__all__ = [
    "GALLERY",
    "INDEX",
    "Answer",
    "DepthLadder",
    "Entry",
    "Fold",
    "Gallery",
    "GallerySearcher",
    "HeldTokens",
    "HierarchicalSearch",
    "HierarchyConfig",
    "Hit",
    "LocalReranker",
    "Member",
    "Part",
    "Query",
    "Searcher",
    "Side",
    "StoredTokens",
    "TokenSource",
    "View",
    "build_gallery",
    "choose_depths",
]
