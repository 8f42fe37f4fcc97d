"""Models of the sentence-transformers library (https://www.sbert.net), run by its own `encode`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from modalloy.encoders.base import (
    MODALITIES,
    Encoded,
    Encoder,
    Fingerprint,
    Modality,
    Prepared,
    require_image,
    require_text,
    sha256_of_settings,
)
from modalloy.encoders.hub.files import Layout, ModelFiles, model_files
from modalloy.encoders.hub.model import load_model, or_checkpoint_error, require_whole
from modalloy.encoders.hub.optional import optional_library
from modalloy.encoders.hub.processing import image_processor
from modalloy.encoders.hub.quiet import quiet
from modalloy.errors import ConfigError

_LIBRARY = "sentence_transformers"


class SentenceTransformersEncoder(Encoder):
    """A model of sentence-transformers, of texts, of images or of both, such as "all-MiniLM-L6-v2" or "clip-ViT-B-32".

    The embedding is what the model's `encode` gives, with the default prompt if the model has one. The tokens are its
    token embeddings, what its pooling makes of them first; a model that gives none has its embedding as its one token.

    Args:
        kind: what the spec begins with.
        source: a folder, or a name on the hub, with a revision after "@" if wanted.

    Raises:
        ConfigError: the library isn't installed, the model can't be had, or isn't one of sentence-transformers.
        CheckpointError: its files are damaged.
    """

    def __init__(self, kind: str, source: str) -> None:
        library = optional_library(_LIBRARY, "sentence-transformers")
        self._kind, self.spec = kind, f"{kind}:{source}"
        self._files = model_files(source, Layout(folders=True))
        self.name = self._files.name
        folders = _modules(self._files)
        for folder in folders:
            require_whole(replace(self._files, folder=folder))
        with quiet():
            self._model = or_checkpoint_error(
                self._files.folder,
                lambda: library.SentenceTransformer(
                    str(self._files.folder),
                    device="cpu",
                    trust_remote_code=False,
                    local_files_only=True,
                    model_kwargs={"dtype": torch.float32, "weights_only": True},
                ),
            )
        _require_all_weights(self._model, self._files)
        self._model.requires_grad_(False).eval()
        processor: Any = getattr(self._model, "processor", None)
        if hasattr(processor, "image_processor"):
            # The library would take torchvision's where that is installed, which resizes differently.
            processor.image_processor = image_processor(replace(self._files, folder=folders[0]))
        self.modalities = tuple(modality for modality in MODALITIES if self._model.supports(modality))

    def fingerprint(self, modality: Modality) -> Fingerprint:
        """The weight files, the revision, and the files that say how the modules work."""
        self._require(modality)
        return Fingerprint(
            name=f"{self._kind}:{self._files.name} {modality}",
            revision=self._files.revision,
            weights_sha256=self._files.weights_sha256,
            preprocessing_sha256=sha256_of_settings(
                {
                    "kind": self._kind,
                    "files_sha256": self._files.settings_sha256(),
                }
            ),
        )

    def dim(self, modality: Modality) -> int:
        """Length of an embedding."""
        return self._example(modality).embedding.shape[1]

    def width(self, modality: Modality) -> int:
        """Length of a token."""
        return self._example(modality).tokens.shape[1]

    def preprocess(self, modality: Modality, item: Image.Image | str) -> Prepared:
        """Checks the item; the library's `encode` takes it as it is."""
        self._require(modality)
        return (require_image(item) if modality == "image" else require_text(item),)

    @torch.no_grad()
    def forward(self, modality: Modality, prepared: Sequence[tuple[Any]]) -> Encoded:
        """Runs the library's `encode` on a batch."""
        self._require(modality)
        given = self._model.encode(
            [item for (item,) in prepared], batch_size=len(prepared), output_value=None, show_progress_bar=False
        )
        # The library works in inference mode, whose tensors can't be used where gradients are wanted later.
        embeddings = torch.stack([item["sentence_embedding"] for item in given]).float().clone()
        tokens = [self._tokens(item) for item in given]
        return Encoded(F.normalize(embeddings, dim=-1), torch.cat(tokens), torch.tensor([len(rows) for rows in tokens]))

    def _tokens(self, item: dict[str, Any]) -> Tensor:
        """One item's tokens, "tokens width", the summary first."""
        if "token_embeddings" not in item:
            return item["sentence_embedding"].float()[None].clone()
        tokens = item["token_embeddings"].float()
        mask = item.get("attention_mask")
        if mask is not None and len(mask) == len(tokens):
            tokens = tokens[mask.bool()]
        tokens = tokens.clone()
        if self._pooling is None:
            summary = tokens.mean(dim=0)
        else:
            prompt = {"prompt_length": item["prompt_length"]} if "prompt_length" in item else {}
            summary = self._pooling({"token_embeddings": tokens[None], **prompt})["sentence_embedding"][0]
        # CLS pooling takes the first token, which then is there already.
        return tokens if torch.equal(summary, tokens[0]) else torch.cat([summary[None], tokens])

    @cached_property
    def _pooling(self) -> Any:
        """The module that makes one vector of the tokens, unless it joins several vectors, wider than a token."""
        pooling = [module for module in self._model if type(module).__name__ == "Pooling"]
        return pooling[0] if pooling and isinstance(pooling[0].pooling_mode, str) else None

    @cached_property
    def _examples(self) -> dict[Modality, Encoded]:
        return {}

    def _example(self, modality: Modality) -> Encoded:
        if modality not in self._examples:
            item = Image.new("RGB", (64, 64), "grey") if modality == "image" else "a"
            self._examples[modality] = self.forward(modality, [(item,)])
        return self._examples[modality]


def _require_all_weights(module: nn.Module, files: ModelFiles) -> None:
    """Loads the transformers once more, since the library doesn't tell which of their weights are random numbers."""
    from transformers import PreTrainedModel

    if isinstance(module, PreTrainedModel):
        # The library's pooling reads the tokens, never the transformer's own pooler.
        folder = Path(module.name_or_path or files.folder)
        load_model(type(module).__name__, replace(files, folder=folder), without=("pooler.",))
        return
    for child in module.children():
        _require_all_weights(child, files)


def _modules(files: ModelFiles) -> list[Path]:
    """The folders of the model's modules; those whose code isn't the library's own are refused."""
    path = files.folder / "modules.json"
    if not path.is_file():
        raise ConfigError(
            f"{files.name} is no model of sentence-transformers: it has no modules.json; "
            "use the kind of encoder that is made for it."
        )
    listed = or_checkpoint_error(
        path, lambda: [(str(module["type"]), str(module["path"])) for module in json.loads(path.read_text())]
    )
    foreign = [kind for kind, _ in listed if not kind.startswith(f"{_LIBRARY}.")]
    if foreign:
        raise ConfigError(
            f"{files.name} needs code of its own ({foreign[0]}), which modalloy doesn't run; "
            "use a model whose modules are all sentence-transformers' own."
        )
    return [files.folder / folder for _, folder in listed] or [files.folder]
