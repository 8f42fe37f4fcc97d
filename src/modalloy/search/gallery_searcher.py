"""Questions in words or pictures, answered from galleries."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from PIL import Image
from torch import Tensor

from modalloy.data import Manifest
from modalloy.encoders import Encoder, Modality, load_encoder
from modalloy.encoders.base import require_text
from modalloy.errors import CheckpointError, ConfigError
from modalloy.search.build import build_gallery
from modalloy.search.gallery import Gallery
from modalloy.search.hit import Hit

GALLERY = "gallery"
"""The folder in which a run, or an alloy, keeps its galleries."""


class GallerySearcher:
    """Galleries and the encoder that made them.

    Args:
        encoder: what encodes the queries; the galleries' own.
        image_gallery: what image answers are looked for in.
        caption_gallery: what caption answers are looked for in, if there are any.

    Raises:
        CheckpointError: a gallery was made with another encoder, or with other weights or preprocessing.
        ConfigError: a gallery doesn't hold what its place says.
    """

    def __init__(self, encoder: Encoder, image_gallery: Gallery, caption_gallery: Gallery | None = None) -> None:
        self.encoder = encoder
        self._galleries: dict[Modality, Gallery] = {"image": image_gallery}
        if caption_gallery is not None:
            self._galleries["text"] = caption_gallery
        for modality, gallery in self._galleries.items():
            if gallery.modality != modality:
                raise ConfigError(f"Expected a gallery of {modality}s, got one of {gallery.modality}s.")
            _require_same_encoder(encoder, gallery)

    @classmethod
    def build(cls, encoder: Encoder, manifest: Manifest, vectors: Mapping[Modality, Tensor] | None = None) -> Self:
        """Galleries of a collection's images and, if it has any, captions.

        Args:
            encoder: a dual encoder.
            manifest: the collection.
            vectors: the embeddings of its images and captions where they are made already; see `build_gallery`.

        Raises:
            ConfigError: the encoder isn't dual.
        """
        made = vectors or {}
        images = build_gallery(encoder, manifest, "image", made.get("image"))
        captions = build_gallery(encoder, manifest, "text", made.get("text")) if manifest.captions else None
        return cls(encoder, images, captions)

    @classmethod
    def open(cls, folder: str | Path, encoder: Encoder | None = None) -> Self:
        """Loads what `save` wrote.

        Args:
            folder: where the galleries are.
            encoder: by default the one that the galleries name.

        Raises:
            CheckpointError: there is no gallery of images, a gallery is damaged, or it was made with another
                encoder.
            ConfigError: the encoder that the galleries name isn't known.
        """
        folder = Path(folder)
        images = Gallery.load(folder / "image")
        captions = Gallery.load(folder / "text") if (folder / "text").exists() else None
        return cls(encoder or load_encoder(images.spec), images, captions)

    def save(self, folder: str | Path) -> None:
        """Writes the galleries to `folder`, in "image" and "text"; the encoder is recorded, not copied."""
        for modality, gallery in self._galleries.items():
            gallery.save(Path(folder) / modality)

    def by_text(self, text: str, k: int = 10, target: Modality = "image") -> list[Hit]:
        """The `k` images, or captions, most similar to a text, best first.

        Raises:
            DataError: the text is blank.
            ConfigError: `k` is below 1, `target` has no gallery, or the encoder takes no texts.
        """
        gallery = self._gallery(target)
        query = self.encoder.encode_texts([require_text(text)]).embedding
        return gallery.search(query, k)[0]

    def by_image(self, image: str | Path | Image.Image, k: int = 10, target: Modality = "image") -> list[Hit]:
        """The `k` images, or captions, most similar to a picture or the file of one, best first.

        A picture that is in the gallery finds itself.

        Raises:
            ImageError: the file can't be decoded.
            ConfigError: `k` is below 1, `target` has no gallery, or the encoder takes no images.
        """
        gallery = self._gallery(target)
        query = self.encoder.encode_images([image]).embedding
        return gallery.search(query, k)[0]

    def _gallery(self, target: Modality) -> Gallery:
        if target not in self._galleries:
            raise ConfigError(
                f"There is no gallery of {target!r} to search, only of {', '.join(self._galleries)}; "
                "choose another target, or build that gallery too."
            )
        return self._galleries[target]


def _require_same_encoder(encoder: Encoder, gallery: Gallery) -> None:
    for modality in encoder.modalities:
        expected, got = gallery.fingerprints.get(modality), encoder.fingerprint(modality)
        if expected is None or expected.digest != got.digest:
            made_by = "another encoder" if expected is None else f"{expected.name} ({expected.digest[:12]})"
            raise CheckpointError(
                f"The gallery of {gallery.modality}s was made by {made_by}, but queries would be encoded by "
                f"{got.name} ({got.digest[:12]}); restore that encoder, or make the gallery again."
            )
