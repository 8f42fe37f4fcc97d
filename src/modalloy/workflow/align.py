"""Two backbones, by their stored features and perhaps trained further, into one dual encoder."""

from pathlib import Path

from modalloy.align import AlignedEncoder
from modalloy.encoders import Encoder, Modality, load_encoder
from modalloy.encoders.mid import MidLevel
from modalloy.features import FeatureStore
from modalloy.training.align import fit_aligner
from modalloy.training.align_config import AlignConfig
from modalloy.training.unfrozen_module import trainable
from modalloy.workflow.features import Collection


def align_backbones(
    image: str,
    text: str,
    collection: Collection,
    folder: str | Path,
    config: AlignConfig | None = None,
    name: str | None = None,
) -> AlignedEncoder:
    """Aligns an image and a text backbone on a collection (HACAN); a finished one is loaded.

    With a local branch the mid levels of the backbones that have one are extracted, too. Where the backbones are
    trained, what they become lies in the folder's `image` and `text`.

    Args:
        image: spec of the image backbone.
        text: spec of the text backbone.
        collection: trained on the configuration's split of it; the recall on "val" is logged.
        folder: where the aligned encoder goes.
        config: see `AlignConfig`.
        name: for tables; by default made of the specs.

    Raises:
        ConfigError: a spec is unknown, of the wrong modality, or to be trained and can't be.
        DataError: the collection has nothing to train on.
    """
    config = config or AlignConfig()
    encoders: dict[Modality, Encoder] = {"image": load_encoder(image), "text": load_encoder(text)}
    if config.unfreeze.epoch is not None:
        trainable(encoders)
    stores = {modality: collection.store(encoder, modality) for modality, encoder in encoders.items()}
    mid: dict[Modality, FeatureStore] = {}
    if config.local.dim is not None:
        for modality, encoder in encoders.items():
            if encoder.mid_layer(modality) is not None:
                mid[modality] = collection.store(MidLevel(encoder), modality)
    return fit_aligner(
        config, stores["image"], stores["text"], collection.manifest, folder, mid=mid, encoders=encoders, name=name
    )
