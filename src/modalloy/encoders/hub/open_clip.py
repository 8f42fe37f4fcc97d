"""Models of the open_clip library (https://github.com/mlfoundations/open_clip)."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from modalloy.encoders.base import require_text, sha256_of_settings
from modalloy.encoders.hub.base import HubEncoder, Output
from modalloy.encoders.hub.files import Layout, ModelFiles, model_files
from modalloy.encoders.hub.model import or_checkpoint_error
from modalloy.encoders.hub.optional import optional_library
from modalloy.encoders.hub.processing import TextProcessor
from modalloy.encoders.hub.transforms import TransformedPictures
from modalloy.errors import DataError

_LAYOUT = Layout(
    ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    ("open_clip_pytorch_model.bin",),
    config="open_clip_config.json",
)


class OpenClipEncoder(HubEncoder):
    """A dual encoder of open_clip, with its own preprocessing and tokenizer.

    The tokens are those of the last layer after its norm; the summary is the class token or the end-of-text token
    where the tower pools that one, and else the mean of the tokens.

    Args:
        kind: what the spec begins with.
        source: a model and its weights as open_clip lists them ("ViT-B-32/laion2b_s34b_b79k"), a folder with
            open_clip_config.json and open_clip_model.safetensors, or the name of such a one on the hub
            ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K"), with a revision after "@" if wanted.

    Raises:
        ConfigError: open_clip or its torchvision isn't installed or can't be loaded, or the model can't be had.
        CheckpointError: its files are damaged or not whole.
    """

    def __init__(self, kind: str, source: str) -> None:
        library = optional_library("open_clip", "open-clip", "a torchvision that fits your torch")
        files, arguments = _found(library, source)
        network, transform = or_checkpoint_error(
            files.folder, lambda: library.create_model_from_pretrained(*arguments, precision="fp32")
        )
        tokenizer = or_checkpoint_error(files.folder, lambda: library.get_tokenizer(arguments[0]))
        super().__init__(
            kind,
            source,
            files,
            network.requires_grad_(False).eval(),
            pictures=TransformedPictures(transform, network.visual.preprocess_cfg),
            texts=_Texts(tokenizer),
        )
        tower = getattr(network, "text", network)
        self._text_pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", ""))
        self._hugging_face_text = tower is not network and not hasattr(tower, "forward_intermediates")
        if self._hugging_face_text:
            tower.output_tokens = True
        trunk = getattr(network.visual, "trunk", None)
        pool = getattr(trunk, "global_pool", "") if trunk is not None else getattr(network.visual, "pool_type", "")
        self._class_token = pool in ("tok", "token")

    def _images(self, inputs: Mapping[str, Tensor]) -> Output:
        given = self._network.forward_intermediates(
            image=inputs["pixels"],
            image_indices=1,
            normalize=False,
            normalize_intermediates=True,
            image_output_extra_tokens=self._class_token,
        )
        tokens = given["image_intermediates"][-1].flatten(2).transpose(1, 2)
        summary = given["image_intermediates_prefix"][-1][:, 0] if self._class_token else tokens.mean(dim=1)
        return Output(given["image_features"], tokens, summary)

    def _texts(self, ids: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"]) -> Output:
        if self._hugging_face_text:
            embedding, tokens = self._network.encode_text(ids)
            # Without the class token where the tower pools that one.
            mask = mask[:, ids.shape[1] - tokens.shape[1] :]
            return Output(embedding, tokens, _mean(tokens, mask), mask)
        given = self._network.forward_intermediates(
            text=ids, text_indices=1, normalize=False, normalize_intermediates=True
        )
        tokens = given["text_intermediates"][-1]
        if self._text_pool in ("argmax", "eos"):
            end = mask.sum(dim=1) - 1
            summary = tokens[torch.arange(len(ids), device=ids.device), end]
        elif self._text_pool in ("first", "last"):
            summary = tokens[:, 0 if self._text_pool == "first" else -1]
        else:
            summary = _mean(tokens, mask)
        return Output(given["text_features"], tokens, summary, mask)


class _Texts(TextProcessor):
    """open_clip's tokenizers pad each text to the context length by themselves."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._inner = getattr(tokenizer, "tokenizer", None)  # of transformers, in a wrapper
        self._pad = 0 if self._inner is None else self._inner.pad_token_id or 0
        self.max_length = tokenizer.context_length
        self._lock = threading.Lock()

    def __call__(self, text: object) -> Int[Tensor, "tokens"]:
        """The token ids of one text, without padding."""
        with self._lock:
            ids = self._tokenizer([require_text(text)])[0]
        real = (ids != self._pad).nonzero()
        if not len(real):
            raise DataError(f"A text must hold something that the model's tokenizer knows, got {text!r:.80}.")
        return ids[: int(real[-1]) + 1]

    def collate(
        self, prepared: Sequence[Int[Tensor, "_"]]
    ) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
        """Pads the ids to the context length again; the mask is True at real tokens."""
        ids = torch.full((len(prepared), self.max_length), self._pad)
        mask = torch.zeros(len(prepared), self.max_length, dtype=torch.bool)
        for row, item in enumerate(prepared):
            ids[row, : len(item)], mask[row, : len(item)] = item, True
        return ids, mask

    def pieces(self, text: str) -> list[str]:
        """What the tokens of a text stand for."""
        ids = self(text).tolist()
        if self._inner is not None:
            return self._inner.convert_ids_to_tokens(ids)
        return [self._tokenizer.decoder[number] for number in ids]

    def settings(self) -> dict[str, Any]:
        """All that changes the numbers, for a fingerprint."""
        vocabulary = self._tokenizer.encoder if self._inner is None else self._inner.get_vocab()
        return {
            "tokenizer": type(self._tokenizer).__name__,
            "vocabulary_sha256": sha256_of_settings(vocabulary),
            "context_length": self.max_length,
            "cleaning": getattr(self._tokenizer.clean_fn, "__name__", ""),
        }


def _found(library: Any, source: str) -> tuple[ModelFiles, tuple[str, ...]]:
    """The model's files, and what open_clip is asked for."""
    name, _, tag = source.partition("/")
    listed = library.get_pretrained_cfg(name, tag) if tag else None
    if not listed or Path(source).expanduser().is_dir():
        files = model_files(source, _LAYOUT)
        return files, (f"local-dir:{files.folder}",)
    weights = Path(or_checkpoint_error(Path(source), lambda: library.download_pretrained(listed)))
    revision = weights.parent.name if weights.parent.parent.name == "snapshots" else tag
    return ModelFiles(source, weights.parent, revision, Layout((weights.name,), (), config=None)), (name, tag)


def _mean(
    tokens: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch width"]:
    weight = mask[..., None].to(tokens.dtype)
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1)
