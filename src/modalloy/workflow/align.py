"""Two backbones, by their stored features, into one dual encoder."""

from pathlib import Path

from modalloy.align import AlignedEncoder
from modalloy.encoders import load_encoder
from modalloy.training.align import AlignConfig, fit_aligner
from modalloy.workflow.features import Collection


def align_backbones(
    image: str,
    text: str,
    collection: Collection,
    folder: str | Path,
    config: AlignConfig | None = None,
    name: str | None = None,
) -> AlignedEncoder:
    """Aligns an image and a text backbone on a collection (HACAN's global branch); a finished one is loaded.

    Args:
        image: spec of the image backbone.
        text: spec of the text backbone.
        collection: trained on the configuration's split of it; the recall on "val" is logged.
        folder: where the aligned encoder goes.
        config: see `AlignConfig`.
        name: for tables; by default made of the specs.

    Raises:
        ConfigError: a spec is unknown, or of the wrong modality.
        DataError: the collection has nothing to train on.
    """
    return fit_aligner(
        config or AlignConfig(),
        collection.store(load_encoder(image), "image"),
        collection.store(load_encoder(text), "text"),
        collection.manifest,
        folder,
        name=name,
    )
