"""Imports the features that HADA's authors publish (arXiv 2301.04742, code m2man/HADA) as feature stores.

    ALBEF_Output/flickr30k/{images,texts}/<id>.npz         any <NAME>_Output is an encoder
    ALBEF_AUG_Output/flickr30k/images/<id>_<copy>.npz      augmented copies of the training images
    JSON/{train,val,test}_matching_image_preprocessed_cap.json

An image's file holds `feat` (tokens x width, the summary token first) and `proj_embed`; a text's file the same for all
its captions, `att` (1 where a token is, 0 where padding is) and perhaps `caption`. Tokens are stored as they are: the
L2 norm and the standardisation that the originals' model wants are the model's own first step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modalloy.data import Manifest, write_rejects
from modalloy.encoders import Fingerprint, Modality
from modalloy.encoders.base import sha256_of_settings
from modalloy.errors import DataError
from modalloy.features import FeatureStore
from modalloy.features.assembly import Features, Rejection
from modalloy.features.sources import Images, Source, source_of
from modalloy.features.store_manifest import Description
from modalloy.interop.hada_layout import (
    EncoderFolder,
    ListedImage,
    build_collection,
    find_encoders,
    read_captions,
)
from modalloy.interop.imported_store import FeatureFile, Read, features_of, fill, remove_copies_from, sample
from modalloy.interop.npz import Array, read_npz

LAYOUT = "hada-features-1"


def import_hada_features(
    root: str | Path,
    out: str | Path,
    *,
    collection: str = "flickr30k",
    images: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Makes feature stores and a manifest of features in the authors' folder layout; an interrupted run goes on.

    Gives `out/manifest.jsonl`, `out/<encoder>/{image,text}` (spec "features:out/<encoder>") and augmented copies in
    `out/<encoder>/image/augment-<0, 1, ...>`, whose rows are the images that have them; an earlier import's copies
    beyond these are removed. A file that is missing, damaged or odd rejects its rows, and so does a caption that
    differs from the JSON file's; no row is ever shifted.

    Without `images` an item's path and checksum are those of its first feature file, so that it has no picture to
    show. The weights aren't there to be hashed, so the contents of the first 16 usable files stand for them in an
    encoder's fingerprint: other weights never pass for these. A file mended later changes its own shard only, unless
    it is among those 16: then the encoder's folder has to be deleted and imported anew.

    >>> import json, tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for part in ("JSON", "DOT_Output/flickr30k/images"):
    ...     (root / part).mkdir(parents=True)
    >>> listed = root / "JSON" / "test_matching_image_preprocessed_cap.json"
    >>> _ = listed.write_text(json.dumps({"1007": ["a man with a hat"]}))
    >>> np.savez(root / "DOT_Output/flickr30k/images/1007.npz", feat=np.ones((11, 8)), proj_embed=np.ones(8))
    >>> made = import_hada_features(root, root / "imported", progress=False)
    >>> made["counts"], made["encoders"]["dot"]["image"]["rows"]
    ({'test': {'images': 1, 'captions': 1}}, 1)

    Args:
        root: holds the folders named above.
        out: where everything goes.
        collection: the collection's folder below each encoder's.
        images: folder of the pictures, <id>.jpg anywhere below it.
        progress: shows a bar with the time left for each store on stderr.

    Returns:
        What was made, fit for JSON: counts, folders and the number of rejects.

    Raises:
        DataError: the layout isn't the authors', a picture is missing, or none of an encoder's files can be used.
        FeatureError: `out` holds other features.
    """
    root, out = Path(root), Path(out)
    encoders = find_encoders(root, collection)
    listed, rejects = read_captions(root)
    pictures, saved = None if images is None else Path(images), out / "manifest.jsonl"
    manifest = build_collection(root, pictures, listed, encoders, rejects, saved)
    manifest.save(saved)
    write_rejects(saved, rejects)
    by_id = {each.id: each for each in listed}
    made = [
        _Import(encoder, manifest, [by_id[item.id] for item in manifest], out, collection, progress).stores()
        for encoder in encoders
    ]
    return {
        "manifest": str(saved),
        "counts": manifest.counts(),
        "rejects": len(rejects),
        "encoders": {encoder.name: stores for encoder, stores in zip(encoders, made, strict=True)},
    }


@dataclass(frozen=True)
class _Import:
    """The import of one encoder's features."""

    encoder: EncoderFolder
    manifest: Manifest
    listed: Sequence[ListedImage]
    out: Path
    collection: str
    progress: bool

    def stores(self) -> dict[str, Any]:
        """Fills the encoder's stores and says what is in them."""
        made: dict[str, Any] = {"spec": self._spec}
        if self.encoder.images is not None:
            images = self._images(self.encoder.images)
            made["image"] = _summary(images)
            copies = self.encoder.copies().items()
            used = [(number, ids) for number, ids in copies if not ids.isdisjoint(self.manifest.image_ids)]
            # Numbered from 0 without gaps, whatever the files' numbers are: StoredFeatures counts them so.
            made["augmented"] = [
                _summary(self._augmented(images, copy, number, ids)) for copy, (number, ids) in enumerate(used)
            ]
            remove_copies_from(images.folder, len(used))
        if self.encoder.texts is not None:
            made["text"] = _summary(self._texts(self.encoder.texts))
        return made

    def _images(self, folder: Path) -> FeatureStore:
        files = [FeatureFile(folder / f"{item.id}.npz", range(row, row + 1)) for row, item in enumerate(self.manifest)]
        return self._sampled("image", source_of(self.manifest, "image"), files, partial(_read_image, files))

    def _texts(self, folder: Path) -> FeatureStore:
        files, start = [], 0
        for item in self.manifest:
            files.append(FeatureFile(folder / f"{item.id}.npz", range(start, start + len(item.captions))))
            start += len(item.captions)
        read = partial(_read_texts, files, self.listed)
        return self._sampled("text", source_of(self.manifest, "text"), files, read)

    def _augmented(self, images: FeatureStore, copy: int, number: int, ids: set[str]) -> FeatureStore:
        assert self.encoder.augmented is not None
        having = Manifest(self.manifest.root, tuple(item for item in self.manifest if item.id in ids))
        source = Images(having)
        files = [
            FeatureFile(self.encoder.augmented / f"{id}_{number}.npz", range(row, row + 1))
            for row, id in enumerate(source.ids)
        ]
        # The encoder is the same, so the lengths and the fingerprint are those of the pictures as they are.
        description = Description(self._spec, "image", images.fingerprint, images.dim, images.width, source.digest())
        folder = images.folder / f"augment-{copy}"
        return fill(folder, description, source, files, partial(_read_image, files), progress=self.progress)

    def _sampled(self, modality: Modality, source: Source, files: Sequence[FeatureFile], read: Read) -> FeatureStore:
        try:
            sampled = sample(files, read)
        except DataError as error:
            raise DataError(f"{self.encoder.name}, {modality}s of {self.collection}: {error}") from None
        settings = {"layout": LAYOUT, "collection": self.collection, "modality": modality}
        fingerprint = Fingerprint(
            name=f"{self.encoder.name} (authors' features)",
            revision=LAYOUT,
            weights_sha256=sampled.digest,
            preprocessing_sha256=sha256_of_settings(settings),
        )
        description = Description(self._spec, modality, fingerprint, sampled.dim, sampled.width, source.digest())
        return fill(self.out / self.encoder.name / modality, description, source, files, read, progress=self.progress)

    @property
    def _spec(self) -> str:
        return f"features:{(self.out / self.encoder.name).resolve()}"


def _read_image(files: Sequence[FeatureFile], number: int) -> list[Features | Rejection]:
    path = files[number].path
    try:
        arrays = read_npz(path, ("feat", "proj_embed"))
        embedding, tokens = (_array(path, arrays, name) for name in ("proj_embed", "feat"))
    except DataError as error:
        return [Rejection(str(error))]
    return [_named(path, features_of(embedding, tokens))]


def _read_texts(files: Sequence[FeatureFile], listed: Sequence[ListedImage], number: int) -> list[Features | Rejection]:
    path, image = files[number].path, listed[number]
    try:
        arrays = read_npz(path, ("feat", "proj_embed", "att", "caption"))
        _require_as_many(path, arrays, image)
        return [_named(path, _read_text(path, arrays, number, text)) for number, text in image.captions.items()]
    except DataError as error:
        return [Rejection(str(error))] * len(image.captions)


def _require_as_many(path: Path, arrays: dict[str, Array], image: ListedImage) -> None:
    """Brings all arrays to one entry a caption.

    Raises:
        DataError: there are more or fewer captions than the JSON file lists, so that their order is in doubt.
    """
    # ALBEF's extraction starts a file without the axis of captions and adds it with the second one.
    if image.listed == 1 and _array(path, arrays, "att").ndim == 1 and arrays["att"].dtype != object:
        arrays.update({name: array[None] for name, array in arrays.items()})
    for name in ("feat", "proj_embed", "att", *(["caption"] if "caption" in arrays else [])):
        array = _array(path, arrays, name)
        if array.ndim == 0 or len(array) != image.listed:
            got = len(array) if array.ndim else "no list of"
            raise DataError(f"{path}: its {name!r} holds {got} captions, the JSON file lists {image.listed}")


def _read_text(path: Path, arrays: dict[str, Array], number: int, text: str) -> Features | Rejection:
    if "caption" in arrays and (problem := _other_caption(arrays["caption"][number], text)) is not None:
        return Rejection(problem)
    # Of an array with one axis only, the entry is a number.
    embedding, tokens, att = (np.asarray(arrays[name][number]) for name in ("proj_embed", "feat", "att"))
    length = int(att.sum()) if att.dtype.kind in "biuf" and np.isin(att, (0, 1)).all() else 0
    if att.ndim != 1 or tokens.shape[:1] != att.shape or length == 0 or not att[:length].all():
        return Rejection(
            f"its 'att' must be 1 for each token and 0 for the padding after them, got {att.dtype} of shape "
            f"{att.shape} for tokens of shape {tokens.shape}"
        )
    return features_of(embedding, tokens[:length])


def _other_caption(stored: Any, text: str) -> str | None:
    """How the stored caption differs from the JSON file's, but for white space; None if it doesn't."""
    if isinstance(stored, str) and stored.split() == text.split():
        return None
    return f"its caption is {str(stored)[:80]!r}, the JSON file's {text[:80]!r}; the features may be of another image"


def _array(path: Path, arrays: dict[str, Array], name: str) -> Array:
    if name not in arrays:
        raise DataError(f"{path} holds no array {name!r}")
    return arrays[name]


def _named(path: Path, answer: Features | Rejection) -> Features | Rejection:
    return Rejection(f"{path}: {answer.reason}") if isinstance(answer, Rejection) else answer


def _summary(store: FeatureStore) -> dict[str, Any]:
    return {"folder": str(store.folder), "rows": len(store), "rejects": len(store.rejects())}
