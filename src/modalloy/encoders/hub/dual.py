"""The dual encoders of transformers that project both modalities into one space by get_*_features.

Notable: what a text is cut to, how it is padded and whether padding is masked are each family's own, and a model
answers otherwise, without complaint, where they aren't kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from modalloy.encoders.hub.base import HubEncoder, Output, without_registers
from modalloy.encoders.hub.captions import CHINESE_CLIP_CAPTIONS, LOWERCASE, CaptionRule
from modalloy.encoders.hub.files import model_files
from modalloy.encoders.hub.model import load_model, require_model_type
from modalloy.encoders.hub.processing import PictureProcessor, TextProcessor, longest_text
from modalloy.errors import ConfigError


@dataclass(frozen=True)
class _Family:
    """How a family's model is loaded and read."""

    model_types: dict[str, str]
    """For each `model_type` in config.json the class of transformers."""
    max_length: int
    """Tokens of a text, special ones included, as the family was trained."""
    padding: Literal["longest", "max_length"] = "longest"
    masked: bool = True
    """Whether the text model is told which tokens are padding."""
    rule: CaptionRule | None = None
    """How the authors rewrote texts before their tokenizer."""
    text_summary: Literal["first", "end", "last"] = "first"
    """The token whose hidden state is pooled: the first, the end-of-text token, or the last, padding included."""


_FAMILIES = {
    # Radford et al. 2021.
    "clip": _Family({"clip": "CLIPModel"}, max_length=77, text_summary="end"),
    # Zhai et al. 2023; Tschannen et al. 2025: trained without masks on lower-cased texts padded to 64. The second's
    # checkpoints of one picture size are of the first's type, those of any shape (NaFlex) of their own.
    "siglip": _Family(
        {"siglip": "SiglipModel", "siglip2": "Siglip2Model"},
        max_length=64,
        padding="max_length",
        masked=False,
        rule=LOWERCASE,
        text_summary="last",
    ),
    # Jia et al. 2021. Its processor pads to 64, which its mask undoes.
    "align": _Family({"align": "AlignModel"}, max_length=64),
    # Yang et al. 2022.
    "chinese-clip": _Family({"chinese_clip": "ChineseCLIPModel"}, max_length=52, rule=CHINESE_CLIP_CAPTIONS),
    # Chen et al. 2022.
    "altclip": _Family({"altclip": "AltCLIPModel"}, max_length=77),
    "dual": _Family({"vision-text-dual-encoder": "VisionTextDualEncoderModel"}, max_length=512),
}

# Vision towers whose first token is a CLS.
_WITH_CLS = (
    *("clip_vision_model", "chinese_clip_vision_model", "altclip_vision_model"),
    *("vit", "deit", "beit", "dinov2", "dinov2_with_registers"),
)


class HubDualEncoder(HubEncoder):
    """CLIP, SigLIP, ALIGN, Chinese-CLIP, AltCLIP or a VisionTextDualEncoder of transformers.

    Args:
        kind: the family, as in a spec: "clip", "siglip" (SigLIP 2 too), "align", "chinese-clip", "altclip", "dual".
        source: a folder, or a name on the hub, with a revision after "@" if wanted.

    Raises:
        ConfigError: the family is unknown, the model can't be had, or is of another family.
        CheckpointError: its files are damaged or not whole.
    """

    def __init__(self, kind: str, source: str) -> None:
        if kind not in _FAMILIES:
            raise ConfigError(f"A hub dual encoder is one of {', '.join(_FAMILIES)}, got {kind!r}.")
        family, files = _FAMILIES[kind], model_files(source)
        architecture = family.model_types[require_model_type(files, kind, list(family.model_types))]
        network: Any = load_model(architecture, files)
        config = network.config
        if config.text_config.model_type == "clip_text_model":
            family = _FAMILIES["clip"]  # CLIP's text tower in a VisionTextDualEncoder
        self._family = family
        self._registers = getattr(config.vision_config, "num_register_tokens", 0)
        self._with_cls = config.vision_config.model_type in _WITH_CLS
        longest = min(family.max_length, longest_text(config.text_config))
        super().__init__(
            kind,
            source,
            files,
            network,
            pictures=PictureProcessor(files),
            texts=TextProcessor(files, longest, family.padding, family.rule),
            settings={"masked": family.masked},
        )

    def _images(self, inputs: Mapping[str, Tensor]) -> Output:
        given = self._network.get_image_features(**inputs)
        hidden, pooled = given.last_hidden_state, given.pooler_output
        if hidden.ndim == 4:  # a convolutional network's map, "batch width rows columns"
            hidden = hidden.flatten(2).transpose(1, 2)
        # NaFlex pads pictures of other shapes to one number of patches.
        mask = inputs["pixel_attention_mask"].bool() if "pixel_attention_mask" in inputs else None
        if self._with_cls:
            return Output(pooled, without_registers(hidden, self._registers))
        # What is projected afterwards doesn't have the tokens' width, so that their mean has to stand in.
        summary = hidden.mean(dim=1) if hasattr(self._network, "visual_projection") else pooled
        return Output(pooled, hidden, summary, mask)

    def _texts(self, ids: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"]) -> Output:
        given = self._network.get_text_features(
            input_ids=ids, attention_mask=mask.long() if self._family.masked else None
        )
        return Output(given.pooler_output, given.last_hidden_state, self._summary(given.last_hidden_state, mask), mask)

    def _summary(
        self, hidden: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch width"] | None:
        if self._family.text_summary == "first":
            return None
        if self._family.text_summary == "last":
            return hidden[:, -1]
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
