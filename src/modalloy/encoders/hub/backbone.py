"""Unimodal models of transformers, as backbones for alignment: ConvNeXt, ViT, DINOv2 and BERT-like models."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from modalloy.encoders.hub.base import HubEncoder, Output, without_registers
from modalloy.encoders.hub.files import ModelFiles, model_files
from modalloy.encoders.hub.model import load_and_list_missing, load_model, require_model_type
from modalloy.encoders.hub.processing import PictureProcessor, TextProcessor, longest_text
from modalloy.errors import ConfigError

_IMAGE_TYPES = {
    "convnext": ("convnext", "convnextv2"),
    "vit": ("vit",),
    "dinov2": ("dinov2", "dinov2_with_registers"),
}
_TEXT_TYPES = (
    *("bert", "distilbert", "electra", "albert", "ernie", "deberta", "deberta-v2", "modernbert"),
    *("roberta", "xlm-roberta", "camembert", "mpnet"),
)


class ImageBackbone(HubEncoder):
    """A ConvNeXt, ViT or DINOv2 as an image encoder.

    ConvNeXt's tokens are the cells of its last map, behind a summary that is the normalised mean of them; those of
    the others are the last hidden states, CLS first, without DINOv2's registers. The embedding is the summary.

    Args:
        kind: "convnext" (ConvNeXt V2 too), "vit" or "dinov2" (with registers too).
        source: a folder, or a name on the hub ("facebook/dinov2-base"), with a revision after "@" if wanted.

    Raises:
        ConfigError: the kind is unknown, the model can't be had, or is of another kind.
        CheckpointError: its files are damaged or not whole.
    """

    def __init__(self, kind: str, source: str) -> None:
        if kind not in _IMAGE_TYPES:
            raise ConfigError(f"A hub backbone of images is one of {', '.join(_IMAGE_TYPES)}, got {kind!r}.")
        files = model_files(source)
        require_model_type(files, kind, _IMAGE_TYPES[kind])
        # ViT's pooler belongs to a lost training task, and the mask token to another.
        network: Any = load_model("AutoModel", files, without=("pooler.", "embeddings.mask_token"))
        super().__init__(kind, source, files, network, pictures=PictureProcessor(files))
        self._registers = getattr(network.config, "num_register_tokens", 0)

    def _images(self, inputs: Mapping[str, Tensor]) -> Output:
        given = self._network(**inputs)
        hidden = given.last_hidden_state
        if hidden.ndim == 4:
            return Output(given.pooler_output, hidden.flatten(2).transpose(1, 2), given.pooler_output)
        return Output(hidden[:, 0], without_registers(hidden, self._registers))


class TextBackbone(HubEncoder):
    """A BERT-like model as a text encoder.

    The embedding is the pooler's output where the files hold a pooler that was trained (BERT), and the tokens then
    begin with CLS. Elsewhere, and for a sentence encoder (its folder holds `modules.json`), it is the mean of the
    tokens, special ones included, which then is the summary in front of them too.

    Args:
        kind: what the spec begins with, "bert".
        source: a folder, or a name on the hub ("bert-base-uncased"), with a revision after "@" if wanted.

    Raises:
        ConfigError: the model can't be had, or isn't like BERT.
        CheckpointError: its files are damaged or not whole.
    """

    def __init__(self, kind: str, source: str) -> None:
        files = model_files(source)
        require_model_type(files, kind, _TEXT_TYPES)
        network: Any
        network, missing = load_and_list_missing("AutoModel", files, without=("pooler.",))
        self._pooled = getattr(network, "pooler", None) is not None and not missing and not _of_sentences(files)
        super().__init__(
            kind,
            source,
            files,
            network,
            texts=TextProcessor(files, longest_text(network.config)),
            settings={"embedding": "pooler" if self._pooled else "mean of the tokens"},
        )

    def _texts(self, ids: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"]) -> Output:
        given = self._network(input_ids=ids, attention_mask=mask.long())
        hidden = given.last_hidden_state
        if self._pooled:
            return Output(given.pooler_output, hidden, mask=mask)
        mean = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return Output(mean, hidden, mean, mask)


def _of_sentences(files: ModelFiles) -> bool:
    # Their files often still hold the pooler of the model they began as, which their training left out.
    return (files.folder / "modules.json").is_file()
