"""What an extraction will take, store by store, before it starts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modalloy.align import AlignedEncoder
from modalloy.encoders import Encoder, Modality
from modalloy.features.estimate import Estimate, estimate, estimate_derived
from modalloy.features.extract import placed
from modalloy.features.stored import StoredFeatures
from modalloy.fusion import Alloy
from modalloy.workflow.features import Collection


@dataclass(frozen=True)
class PlannedStore:
    """A store that an extraction fills, or that is there already."""

    encoder: str
    """Its spec."""
    modality: Modality
    folder: Path
    estimate: Estimate


def stores_of(collection: Collection, encoder: Encoder) -> list[tuple[Modality, int | None]]:
    """What an extraction stores of an encoder: each modality, and the augmented copies of the images by number."""
    return [
        *((modality, None) for modality in encoder.modalities),
        *(("image", copy) for copy in range(collection.copies(encoder))),
    ]


def plan_stores(collection: Collection, encoders: Sequence[Encoder]) -> list[PlannedStore]:
    """The stores of the encoders' features, with those that theirs are made from, each once; writes nothing.

    Raises:
        FeatureError: a folder holds other features under an encoder's name.
    """
    planned = [
        store
        for encoder in encoders
        for modality, copy in stores_of(collection, encoder)
        for store in _stores(collection, encoder, modality, copy)
    ]
    return list({store.folder: store for store in planned}.values())


def _stores(collection: Collection, encoder: Encoder, modality: Modality, copy: int | None) -> list[PlannedStore]:
    if isinstance(encoder, StoredFeatures):
        stored = collection.store(encoder, modality, copy)
        return [PlannedStore(encoder.spec, modality, stored.folder, Estimate(len(stored), len(stored), 0, 0.0))]
    folder, source = collection.folder(encoder, modality, copy), collection.source(modality, copy)
    if isinstance(encoder, AlignedEncoder | Alloy):
        inputs = [encoder.backbone(modality)] if isinstance(encoder, AlignedEncoder) else encoder.encoders
        made_from = [store for each in inputs for store in _stores(collection, each, modality, copy)]
        # An aligned encoder shares its backbone's tokens; an alloy's one token is its vector.
        todo = estimate_derived(encoder, modality, source, folder, tokens=int(isinstance(encoder, Alloy)))
        return [*made_from, PlannedStore(encoder.spec, modality, folder, todo)]
    devices = collection.extraction.chosen_devices()
    with placed(encoder, devices):
        workers = min(collection.extraction.workers or 4, os.cpu_count() or 1)
        todo = estimate(encoder, modality, source, folder, workers=workers)
    todo = replace(todo, seconds=todo.seconds / max(1, len(devices)))
    return [PlannedStore(encoder.spec, modality, folder, todo)]
