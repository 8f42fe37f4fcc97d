"""Exact search: text to image, image to text, image to image."""

from modalloy.search.build import build_gallery
from modalloy.search.gallery import Entry, Gallery, Hit
from modalloy.search.searcher import GALLERY, Searcher

__all__ = ["GALLERY", "Entry", "Gallery", "Hit", "Searcher", "build_gallery"]
