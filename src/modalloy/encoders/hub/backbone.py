"""Unimodal models of transformers, as backbones for alignment: ConvNeXt, ViT, DINOv2 and BERT-like models."""

from collections.abc import Collection, Sequence
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from modalloy.encoders.base import Encoded, Level, Modality
from modalloy.encoders.hub.base import HubEncoder, Output, without_registers
from modalloy.encoders.hub.files import ModelFiles, model_files
from modalloy.encoders.hub.model import load_and_list_missing, load_model, require_model_type
from modalloy.encoders.hub.processing import PictureProcessor, TextProcessor, longest_text
from modalloy.encoders.trainable import TrainableEncoder
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


class ImageBackbone(TrainableEncoder, HubEncoder):
    """A ConvNeXt, ViT or DINOv2 as an image encoder.

    ConvNeXt's tokens are the cells of its last map, behind a summary that is the normalised mean of them; those of
    the others are the last hidden states, CLS first, without DINOv2's registers. The embedding is the summary.

    The mid level is ConvNeXt's second-last stage behind the mean of its cells, as in HACAN: of twice the resolution and
    half the width. Of the others it is the block two thirds in, with the final norm, as what blocks give has none.

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
        # ViT's pooler belongs to a lost training task, and the mask token to another: nothing to train or save.
        network: Any = load_model("AutoModel", files, without=("pooler.", "embeddings.mask_token"))
        network.pooler = None
        if hasattr(network.embeddings, "mask_token"):
            network.embeddings.mask_token = None
        super().__init__(kind, source, files, network, pictures=PictureProcessor(files))
        self._registers = getattr(network.config, "num_register_tokens", 0)

    def mid_layer(self, modality: Modality) -> str | None:
        """ConvNeXt's second-last stage, or the block two thirds in."""
        self._require(modality)
        return f"layer {self._mid}" if self._mid else None

    @property
    def _mid(self) -> int:
        config = self._network.config
        stages = getattr(config, "depths", None)
        return len(stages) - 1 if stages else 2 * config.num_hidden_layers // 3

    def _levels(self, prepared: Sequence[Any], levels: Collection[Level]) -> dict[Level, Encoded]:
        given = self._network(**self._picture_batch(prepared), output_hidden_states="mid" in levels)
        return {level: (self._high(given) if level == "high" else self._earlier(given)).packed() for level in levels}

    def _high(self, given: Any) -> Output:
        hidden = given.last_hidden_state
        if hidden.ndim == 4:
            return Output(given.pooler_output, hidden.flatten(2).transpose(1, 2), given.pooler_output)
        return Output(hidden[:, 0], without_registers(hidden, self._registers))

    def _earlier(self, given: Any) -> Output:
        hidden = given.hidden_states[self._mid]
        if hidden.ndim == 4:
            cells = hidden.flatten(2).transpose(1, 2)
            mean = cells.mean(dim=1)
            return Output(mean, cells, mean)
        hidden = self._network.layernorm(hidden)
        return Output(hidden[:, 0], without_registers(hidden, self._registers))


class TextBackbone(TrainableEncoder, HubEncoder):
    """A BERT-like model as a text encoder.

    The embedding is the pooler's output where the files hold a pooler that was trained (BERT), and the tokens then
    begin with CLS. Elsewhere, and for a sentence encoder (its folder holds `modules.json`), it is the mean of the
    tokens, special ones included, which then is the summary in front of them too.

    The mid level is the layer five sixths in, HACAN's tenth of twelve, with the same kind of summary.

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
        if not self._pooled:
            network.pooler = None  # nothing to train or save
        super().__init__(
            kind,
            source,
            files,
            network,
            texts=TextProcessor(files, longest_text(network.config)),
            settings={"embedding": "pooler" if self._pooled else "mean of the tokens"},
        )

    def mid_layer(self, modality: Modality) -> str | None:
        """The layer five sixths in."""
        self._require(modality)
        return f"layer {self._mid}" if self._mid else None

    @property
    def _mid(self) -> int:
        return 5 * self._network.config.num_hidden_layers // 6

    def _levels(self, prepared: Sequence[Any], levels: Collection[Level]) -> dict[Level, Encoded]:
        ids, mask = self._text_batch(prepared)
        given = self._network(input_ids=ids, attention_mask=mask.long(), output_hidden_states="mid" in levels)
        outputs: dict[Level, Output] = {}
        for level in levels:
            hidden = given.last_hidden_state if level == "high" else given.hidden_states[self._mid]
            if self._pooled:
                outputs[level] = Output(given.pooler_output if level == "high" else hidden[:, 0], hidden, mask=mask)
            else:
                outputs[level] = _with_mean(hidden, mask)
        return {level: output.packed() for level, output in outputs.items()}


def _with_mean(hidden: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"]) -> Output:
    mean = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return Output(mean, hidden, mean, mask)


def _of_sentences(files: ModelFiles) -> bool:
    # Their files often still hold the pooler of the model they began as, which their training left out.
    return (files.folder / "modules.json").is_file()
