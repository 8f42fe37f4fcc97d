"""Fills a gallery with a collection's images or captions."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from modalloy.data.images import open_image
from modalloy.data.manifest import Manifest
from modalloy.encoders import Encoder, Modality
from modalloy.errors import ConfigError, ImageError
from modalloy.progress import track
from modalloy.search.gallery import Entry, Gallery

_BAR_FROM = 10
_logger = logging.getLogger(__name__)


def build_gallery(
    encoder: Encoder,
    manifest: Manifest,
    modality: Modality,
    vectors: Float[Tensor, "items dim"] | None = None,
    batch_size: int = 32,
) -> Gallery:
    """A gallery of all images or all captions of a collection.

    >>> from modalloy.data import demo_manifest
    >>> from modalloy.encoders import load_encoder
    >>> captions = build_gallery(load_encoder("minilm"), demo_manifest()[:2], "text")
    >>> len(captions) == len(demo_manifest()[:2].captions)
    True

    Args:
        encoder: what makes the vectors, or made them.
        manifest: the collection.
        modality: whether to hold its images or its captions.
        vectors: the embeddings already made, in the manifest's order, NaN where an item was rejected. By
            default the encoder makes them now; a picture that can't be decoded is logged, and never found.
        batch_size: how many items to encode at a time.

    Raises:
        ConfigError: the encoder doesn't encode `modality`, or `batch_size` is smaller than 1.
        DataError: there isn't one vector for each item.
    """
    if modality not in encoder.modalities:
        raise ConfigError(
            f"{encoder.spec} encodes only {encoder.modalities[0]}s, so it can't fill a gallery "
            f"of {modality}s; choose a dual encoder."
        )
    if modality == "image":
        entries = [Entry(item.id, item.path, item.captions[0] if item.captions else None) for item in manifest]
        if vectors is None:
            vectors = _encode_images(encoder, [manifest.absolute(item) for item in manifest], batch_size)
    else:
        entries = [
            Entry(id, item.path, caption)
            for item in manifest
            for id, caption in zip(item.caption_ids, item.captions, strict=True)
        ]
        if vectors is None:
            vectors = _encode_captions(encoder, manifest.captions, batch_size)
    return Gallery(
        modality=modality,
        entries=tuple(entries),
        vectors=vectors,
        spec=encoder.spec,
        fingerprints={side: encoder.fingerprint(side) for side in encoder.modalities},
        root=manifest.root.resolve(),
    )


def _encode_images(encoder: Encoder, paths: Sequence[Path], batch_size: int) -> Float[Tensor, "items dim"]:
    vectors = torch.full((len(paths), encoder.dim("image")), torch.nan)
    for rows in _batches(len(paths), batch_size, "encoding images"):
        pictures = {row: picture for row in rows if (picture := _open(paths[row])) is not None}
        if pictures:
            vectors[list(pictures)] = encoder.encode_images(list(pictures.values())).embedding
    return vectors


def _encode_captions(encoder: Encoder, captions: Sequence[str], batch_size: int) -> Float[Tensor, "items dim"]:
    vectors = torch.full((len(captions), encoder.dim("text")), torch.nan)
    for rows in _batches(len(captions), batch_size, "encoding captions"):
        batch = slice(rows.start, rows.stop)
        vectors[batch] = encoder.encode_texts(captions[batch]).embedding
    return vectors


def _batches(items: int, batch_size: int, description: str) -> Iterator[range]:
    """The rows of each batch, under a progress bar if there are many."""
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
    starts = range(0, items, batch_size)
    for start in track(starts, description, total=len(starts), shown_from=_BAR_FROM):
        yield range(start, min(start + batch_size, items))


def _open(path: Path) -> Image.Image | None:
    try:
        return open_image(path)
    except ImageError as error:
        _logger.warning("Left out of the gallery: %s", error)
        return None
