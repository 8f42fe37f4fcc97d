"""A hub model's own preprocessing: its picture processor and its tokenizer, safe among threads."""

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from modalloy.encoders.base import Prepared, require_image, require_text
from modalloy.encoders.hub.captions import CaptionRule
from modalloy.encoders.hub.files import ModelFiles
from modalloy.encoders.hub.quiet import quiet
from modalloy.errors import CheckpointError, ConfigError, DataError, one_line

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab", "merges", "spiece", "spm", "sentencepiece", "bpe")
_TOKENIZER_FILES = (*_VOCABULARY_FILES, "tokenizer", "special_tokens", "added_tokens")
_NO_SETTING = (
    "processor_class",
    "image_processor_type",
    "feature_extractor_type",
    "_name_or_path",
    "auto_map",
    "center_crop",
)
# Text models that count positions from behind the padding token's id.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
_LONGEST = 512


class PictureProcessor:
    """From a picture to the model's input tensors, by the model's own preprocessor on Pillow.

    The backend is fixed, since torchvision's resizes differently: features mustn't depend on what else is installed.
    `"center_crop_rounding": "half_even"` among its settings cuts the middle where torchvision's CenterCrop does, which
    for some sizes is a pixel beside where transformers does.

    Args:
        files: the model's files, with `preprocessor_config.json`.
        processor: the processor itself, for a model whose files describe none.

    Raises:
        CheckpointError: there is no picture processor in the files.
    """

    def __init__(self, files: ModelFiles, processor: Any = None) -> None:
        self._processor = image_processor(files) if processor is None else processor
        if getattr(self._processor, "center_crop_rounding", None) == "half_even":
            self._processor.center_crop = _center_crop_half_even
        self._names = tuple(self._processor(images=Image.new("RGB", (32, 32)), return_tensors="pt"))

    def __call__(self, image: object) -> Prepared:
        """The input tensors of one picture: its pixels, or, where the model takes more, a tuple of tensors."""
        made = self._processor(images=require_image(image), return_tensors="pt")
        tensors = tuple(made[name][0] for name in self._names)
        return tensors[0] if len(tensors) == 1 else tensors

    def collate(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        """The batch as the model's arguments."""
        rows = [item if isinstance(item, tuple) else (item,) for item in prepared]
        return {name: torch.stack(column) for name, column in zip(self._names, zip(*rows, strict=True), strict=True)}

    def settings(self) -> dict[str, Any]:
        """All that changes the numbers, for a fingerprint."""
        described = self._processor.to_dict()
        kept = {key: value for key, value in described.items() if key not in _NO_SETTING}
        return json.loads(json.dumps({"class": type(self._processor).__name__, **kept}, default=str))


class TextProcessor:
    """From a text to token ids by the model's own tokenizer, and from those to a padded batch.

    Args:
        files: the model's files, with the tokenizer's.
        max_length: tokens kept of a text, special ones included.
        padding: "longest": to the longest text of a batch, which then must be masked; "max_length": always to
            `max_length`, for models that were trained so and have no mask.
        rule: how texts are rewritten first, for models whose tokenizer doesn't do what their authors did.
        tokenizer: the tokenizer itself, for a model whose files don't describe it.

    Raises:
        CheckpointError: there is no tokenizer in the files, or it is damaged.
        ConfigError: it needs a package that isn't installed.
    """

    def __init__(
        self,
        files: ModelFiles,
        max_length: int,
        padding: Literal["longest", "max_length"] = "longest",
        rule: CaptionRule | None = None,
        tokenizer: Any = None,
    ) -> None:
        self._tokenizer = _tokenizer(files) if tokenizer is None else tokenizer
        # A missing model_max_length is stored as a huge number.
        self.max_length = min(max_length, self._tokenizer.model_max_length, _LONGEST)
        self._padding = padding
        # Masked texts are padded on the right whatever the tokenizer says, since positions are counted from the
        # left: padding there would make a text's features depend on the longest text of its batch.
        self._left = padding == "max_length" and self._tokenizer.padding_side == "left"
        self._rule = rule
        self._files_sha256 = files.settings_sha256(_TOKENIZER_FILES)
        # A tokenizer keeps how it was last asked to truncate, which other threads would change under its hands.
        self._lock = threading.Lock()

    def __call__(self, text: object) -> Int[Tensor, "tokens"]:
        """The token ids of one text, without padding."""
        text = require_text(text)
        written = self._rule(text) if self._rule else text
        if not written.strip():
            raise DataError(
                f"Of the text {text[:80]!r} nothing is left when it is rewritten as the model's authors did."
            )
        with self._lock:
            encoded = self._tokenizer(
                written,
                truncation=True,
                max_length=self.max_length,
                return_attention_mask=False,
            )
        if not encoded["input_ids"]:
            raise DataError(f"A text must hold something that the model's tokenizer knows, got {text[:80]!r}.")
        return torch.tensor(encoded["input_ids"], dtype=torch.long)

    def collate(
        self, prepared: Sequence[Int[Tensor, "_"]]
    ) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
        """Pads the ids; the mask is True at real tokens."""
        longest = self.max_length if self._padding == "max_length" else max(map(len, prepared))
        ids = torch.full((len(prepared), longest), self._tokenizer.pad_token_id or 0)
        mask = torch.zeros(len(prepared), longest, dtype=torch.bool)
        for row, item in enumerate(prepared):
            real = slice(longest - len(item), None) if self._left else slice(len(item))
            ids[row, real], mask[row, real] = item, True
        return ids, mask

    def pieces(self, text: str) -> list[str]:
        """What the tokens of a text stand for."""
        return self._tokenizer.convert_ids_to_tokens(self(text).tolist())

    def settings(self) -> Mapping[str, Any]:
        """All that changes the numbers, for a fingerprint."""
        return {
            "tokenizer_sha256": self._files_sha256,
            "max_length": self.max_length,
            "padding": self._padding,
            "padding_side": "left" if self._left else "right",
            "rule": self._rule.settings() if self._rule else None,
        }


def longest_text(config: Any) -> int:
    """How many tokens a text model has positions for, by its configuration of transformers; at most 512."""
    positions = getattr(config, "max_position_embeddings", _LONGEST)
    if config.model_type in _OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1
    return min(positions, _LONGEST)


def _center_crop_half_even(image: np.ndarray, size: Any, **_: Any) -> np.ndarray:
    """The middle of a picture, "channels height width", that is as large as the crop or larger."""
    top, left = (round((had - kept) / 2) for had, kept in zip(image.shape[1:], (size.height, size.width), strict=True))
    return image[:, top : top + size.height, left : left + size.width]


def image_processor(files: ModelFiles) -> Any:
    """The picture processor of transformers that lies in a model's folder, on Pillow."""
    from transformers import AutoImageProcessor

    try:
        with quiet():
            return AutoImageProcessor.from_pretrained(
                files.folder, backend="pil", local_files_only=True, trust_remote_code=False
            )
    # Damaged files make the library raise nearly anything.
    except Exception as error:
        raise CheckpointError(
            f"{files.folder} has no usable picture processor ({one_line(error)}); "
            "save it beside the model: AutoImageProcessor.from_pretrained(...).save_pretrained(folder)."
        ) from None


def _tokenizer(files: ModelFiles) -> Any:
    from transformers import AutoTokenizer

    try:
        # Without a vocabulary the library makes an empty tokenizer, to which all words are unknown.
        if not any(path.name.startswith(_VOCABULARY_FILES) for path in files.folder.iterdir()):
            raise OSError("there is no vocabulary")
        with quiet():
            return AutoTokenizer.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise ConfigError(
            f"The tokenizer of {files.folder} needs a package that isn't installed "
            f"({one_line(error)}); install it: pip install sentencepiece protobuf"
        ) from None
    # Damaged files make the library raise nearly anything.
    except Exception as error:
        raise CheckpointError(
            f"{files.folder} has no usable tokenizer ({one_line(error)}); "
            "save it beside the model: AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
        ) from None
