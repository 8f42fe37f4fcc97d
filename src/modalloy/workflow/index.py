"""The galleries by which an encoder's folder is searched."""

from pathlib import Path

from modalloy.encoders import Encoder
from modalloy.search import GALLERY, GallerySearcher
from modalloy.workflow.features import Collection


def index(encoder: Encoder, collection: Collection, folder: str | Path) -> GallerySearcher:
    """Makes galleries of all pictures and all captions of a collection, in `folder`, from stored features.

    Args:
        encoder: a dual encoder, saved.
        collection: what to search; features that aren't stored yet are extracted or computed.
        folder: the run directory, or the alloy's folder.
    """
    vectors = {modality: collection.store(encoder, modality).embeddings(slice(None)) for modality in encoder.modalities}
    searcher = GallerySearcher.build(encoder, collection.manifest, vectors)
    searcher.save(Path(folder) / GALLERY)
    return searcher
