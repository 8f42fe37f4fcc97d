"""BLIP (Li et al. 2022, ICML) by its image-text contrastive head."""

from collections.abc import Mapping

from jaxtyping import Bool, Int
from torch import Tensor

from modalloy.encoders.hub.base import HubEncoder, Output
from modalloy.encoders.hub.captions import BLIP_CAPTIONS
from modalloy.encoders.hub.files import model_files
from modalloy.encoders.hub.model import load_model, require_model_type
from modalloy.encoders.hub.processing import PictureProcessor, TextProcessor

_MAX_LENGTH = 35
"""Tokens of a text in the authors' retrieval."""


class HubBlip(HubEncoder):
    """A BLIP for retrieval (`BlipForImageTextRetrieval`) of transformers.

    Captions are rewritten as its authors did (see `BLIP_CAPTIONS`): lower-cased, some punctuation to spaces, and at
    most 30 words. Its second head, which looks at an image and a text together, isn't used.

    Args:
        kind: what the spec begins with, "blip".
        source: a folder, or a name on the hub ("Salesforce/blip-itm-base-coco"), with a revision after "@" if wanted.

    Raises:
        ConfigError: the model can't be had, or isn't a BLIP.
        CheckpointError: its files are damaged or not whole, or those of a BLIP for captions or questions.
    """

    def __init__(self, kind: str, source: str) -> None:
        files = model_files(source)
        require_model_type(files, kind, ["blip"])
        super().__init__(
            kind,
            source,
            files,
            load_model("BlipForImageTextRetrieval", files, without=("itm_head",)),
            pictures=PictureProcessor(files),
            texts=TextProcessor(files, _MAX_LENGTH, rule=BLIP_CAPTIONS),
        )

    def _images(self, inputs: Mapping[str, Tensor]) -> Output:
        hidden = self._network.vision_model(**inputs).last_hidden_state
        return Output(self._network.vision_proj(hidden[:, 0]), hidden)

    def _texts(self, ids: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"]) -> Output:
        hidden = self._network.text_encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return Output(self._network.text_proj(hidden[:, 0]), hidden, mask=mask)
