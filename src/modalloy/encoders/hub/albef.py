"""ALBEF (Li et al. 2021, NeurIPS), from the checkpoints that its authors published, without its fusion layers.

Notable: the authors' tokenizer puts no [SEP] at the end of a text; pictures are resized without regard to their
shape; a checkpoint tells by its language-modelling head whether it was fine-tuned, and the name tells it on.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from modalloy.encoders.hub.albef_checkpoint import AlbefCheckpoint
from modalloy.encoders.hub.base import HubEncoder, Output
from modalloy.encoders.hub.captions import ALBEF_CAPTIONS
from modalloy.encoders.hub.files import Layout, ModelFiles, hub_file
from modalloy.encoders.hub.model import or_checkpoint_error
from modalloy.encoders.hub.processing import PictureProcessor, TextProcessor
from modalloy.encoders.packaged import weights_sha256
from modalloy.errors import CheckpointError, ConfigError

_LAYOUT = Layout(config=None)
_MAX_LENGTH = 30
"""Tokens of a text in the authors' retrieval."""
_BERT = ("bert-base-uncased", "google-bert/bert-base-uncased")
# RefCOCO, for which the authors published a checkpoint too, is another task.
_DATA = {"flickr": "Flickr30k", "(?<!ref)coco": "MSCOCO"}


class Albef(HubEncoder):
    """ALBEF's image and text encoders, out of a published checkpoint such as `flickr30k.pth`.

    Captions are rewritten as its authors did (see `ALBEF_CAPTIONS`): lower-cased, without punctuation, and at most
    30 words. The vocabulary is `vocab.txt` beside the checkpoint, or that of bert-base-uncased on the hub.

    Args:
        kind: what the spec begins with, "albef".
        source: the checkpoint's file, with the side of the square pictures after "@" if it isn't to be the one the
            checkpoint was trained at ("models/ALBEF.pth@384"); the position embedding is interpolated to it.

    Raises:
        ConfigError: there is no such file, the size isn't a whole number of patches, or there is no vocabulary.
        CheckpointError: the file is damaged, unsafe to read, or lacks weights.
    """

    def __init__(self, kind: str, source: str) -> None:
        path, asked = _path_and_size(source)
        checkpoint = AlbefCheckpoint.read(path)
        # A checkpoint's tensors may have any shape.
        network, size = or_checkpoint_error(path, lambda: _network(checkpoint, asked, f"{kind}:{source}"))
        name = _name(checkpoint) + ("" if size == checkpoint.image_size else f" at {size} px")
        files = _AlbefFiles(name, path.parent, "local", _LAYOUT, checkpoint=path, vocabulary=_vocabulary(path.parent))
        super().__init__(
            kind,
            source,
            files,
            network,
            pictures=PictureProcessor(files, _pictures(size)),
            texts=TextProcessor(files, _MAX_LENGTH, rule=ALBEF_CAPTIONS, tokenizer=_tokenizer(files, checkpoint)),
            settings={"image_size": size, "special_tokens": "[CLS] alone"},
        )

    def _images(self, inputs: Mapping[str, Tensor]) -> Output:
        hidden = self._network.vision(**inputs).last_hidden_state
        return Output(self._network.vision_proj(hidden[:, 0]), hidden)

    def _texts(self, ids: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"]) -> Output:
        hidden = self._network.text(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return Output(self._network.text_proj(hidden[:, 0]), hidden, mask=mask)


class _AlbefNetwork(nn.Module):
    def __init__(self, checkpoint: AlbefCheckpoint, image_size: int) -> None:
        super().__init__()
        side = image_size // checkpoint.patch_size
        self.vision = checkpoint.vision_model(image_size, interpolate_positions(checkpoint.positions, side))
        self.text = checkpoint.text_model()
        self.vision_proj = checkpoint.linear("vision_proj")
        self.text_proj = checkpoint.linear("text_proj")
        self.requires_grad_(False).eval()


def _network(checkpoint: AlbefCheckpoint, asked: int | None, spec: str) -> tuple[_AlbefNetwork, int]:
    """The network, and the side of its pictures."""
    size = asked or checkpoint.image_size
    if size % checkpoint.patch_size:
        raise ConfigError(f"{spec}: the size must be a multiple of {checkpoint.patch_size} pixels.")
    return _AlbefNetwork(checkpoint, size), size


@dataclass(frozen=True)
class _AlbefFiles(ModelFiles):
    checkpoint: Path = Path()
    vocabulary: Path = Path()

    @property
    def weights(self) -> list[Path]:
        return [self.checkpoint]

    def settings_sha256(self, prefixes: Any = ("",)) -> str:
        # Other files in the folder have no part in it.
        return weights_sha256(self.vocabulary)


def interpolate_positions(
    positions: Float[Tensor, "1 positions width"], side: int
) -> Float[Tensor, "1 interpolated width"]:
    """A ViT's position embedding for `side` x `side` patches, bicubically; that of CLS stays.

    >>> interpolate_positions(torch.zeros(1, 1 + 16 * 16, 8), 24).shape
    torch.Size([1, 577, 8])
    """
    trained = math.isqrt(positions.shape[1] - 1)
    if trained == side:
        return positions
    grid = positions[:, 1:].unflatten(1, (trained, trained)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def _path_and_size(source: str) -> tuple[Path, int | None]:
    path, size = Path(source).expanduser(), None
    head, at, tail = source.rpartition("@")
    if at and not path.exists():
        if not (tail.isascii() and tail.isdecimal()) or int(tail) == 0:
            raise ConfigError(f"albef:{source} needs a whole number after the @ (its image size), got {tail!r}.")
        path, size = Path(head).expanduser(), int(tail)
    if not path.is_file():
        raise ConfigError(
            f"{path} isn't a file; name the checkpoint itself, such as albef:models/flickr30k.pth "
            "(published at github.com/salesforce/ALBEF)."
        )
    # Absolute, so that the file is still found after the working directory has changed.
    return path.absolute(), size


def _name(checkpoint: AlbefCheckpoint) -> str:
    if checkpoint.pretrained:
        return "ALBEF 4M (pretrained)" if "4m" in checkpoint.path.stem.lower() else "ALBEF (pretrained)"
    told = (checkpoint.training_files, checkpoint.path.stem, checkpoint.path.parent.name)
    for text in told:
        for word, data in _DATA.items():
            if re.search(word, text, re.IGNORECASE):
                return f"ALBEF (fine-tuned on {data})"
    return f"ALBEF (fine-tuned, {checkpoint.path.stem})"


def _vocabulary(folder: Path) -> Path:
    beside = folder / "vocab.txt"
    if beside.is_file():
        return beside
    for name in _BERT:
        try:
            return hub_file(name, "vocab.txt")
        except ConfigError as error:
            reason = str(error)
    raise ConfigError(
        f"An ALBEF checkpoint holds no vocabulary: put the vocab.txt of bert-base-uncased into {folder} ({reason})"
    )


def _tokenizer(files: _AlbefFiles, checkpoint: AlbefCheckpoint) -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import BertTokenizer

    words = files.vocabulary.read_text(encoding="utf-8").splitlines()
    if "[CLS]" not in words or "[PAD]" not in words:
        raise CheckpointError(f"{files.vocabulary} isn't BERT's vocabulary: it lacks [CLS] or [PAD].")
    if len(words) != checkpoint.vocabulary_size:
        raise CheckpointError(
            f"{files.vocabulary} holds {len(words)} words, but {files.checkpoint} was trained with "
            f"{checkpoint.vocabulary_size}; take the vocab.txt that it was trained with (bert-base-uncased's)."
        )
    tokenizer = BertTokenizer(vocab={word: row for row, word in enumerate(words)}, do_lower_case=True)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", words.index("[CLS]"))]
    )
    return tokenizer


def _pictures(size: int) -> Any:
    from transformers import BlipImageProcessorPil

    # BLIP's authors are ALBEF's, and resize, scale and normalise alike.
    return BlipImageProcessorPil(size={"height": size, "width": size})
